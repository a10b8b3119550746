"""How fine-tuning is made to generalise: a file for each technique, all of them off by default."""
