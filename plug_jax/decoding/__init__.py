"""Text generation from any function that maps tokens and a cache to logits."""
