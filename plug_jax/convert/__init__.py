"""Import and export of PLUG's and BERT's PyTorch checkpoints, and their verification."""
