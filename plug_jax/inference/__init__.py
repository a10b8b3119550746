"""Inference with a trained model: generation, scoring and encoding, batched, on any mesh."""
