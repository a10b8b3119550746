"""Weights in and out: PLUG's and BERT's PyTorch checkpoints, and proof that they agree."""
