"""The measurements of `plug-jax bench`, each next to a plain alternative in the same run."""
