"""What `plug-jax bench` measures, each thing beside a plain alternative in the same run."""
