"""A model behind HTTP: an OpenAI-compatible endpoint, and a page to try it."""
