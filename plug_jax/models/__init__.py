"""Linen modules: embeddings, encoder, decoder, heads, and the whole model."""
