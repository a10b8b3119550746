"""The gin files that ship with plug-jax; in a wheel they are within it."""
