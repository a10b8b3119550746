"""Linen modules: embeddings, encoder, decoder, heads, and the model that joins them."""
