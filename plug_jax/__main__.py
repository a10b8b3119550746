"""`python -m plug_jax` is the `plug-jax` command."""

import sys

from plug_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
