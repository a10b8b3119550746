"""A model behind HTTP: OpenAI-compatible endpoints, and a web page."""
