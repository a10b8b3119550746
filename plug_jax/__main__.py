"""The `plug-jax` command, also as `python -m plug_jax`."""

import sys

from plug_jax.huge_pages import ask_for_huge_pages


def run() -> int:
    """The command of the command line, see `plug_jax.cli.main`; returns its status."""
    ask_for_huge_pages()
    # Only now, as nothing of it is to be imported twice.
    from plug_jax.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
