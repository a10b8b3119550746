"""Fine-tuning techniques, one file each, all off by default."""
