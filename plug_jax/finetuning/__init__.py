"""Fine-tuned runs: grids of them, what they give, and several together."""
