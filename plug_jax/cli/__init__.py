"""The `plug-jax` command line: one module a command, dispatched by `main`."""
