"""The gin files that ship with plug-jax: models/, runs/, mesh/ and demo/."""
