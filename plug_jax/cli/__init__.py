"""The `plug-jax` command line: one module per command, dispatched by `main`."""
