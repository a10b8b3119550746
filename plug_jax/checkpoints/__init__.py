"""Stored models, for training, inference and conversion."""
