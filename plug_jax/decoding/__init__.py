"""Decoding algorithms for any function from tokens and a cache to logits."""
