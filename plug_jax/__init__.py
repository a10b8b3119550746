"""PLUG language models (StructBERT encoder, PALM encoder-decoder) in JAX."""

__version__ = "0.1.0"
