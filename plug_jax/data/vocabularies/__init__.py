"""Text to token ids and back, and vocabulary training."""
