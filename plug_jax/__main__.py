"""The `plug-jax` command, also as `python -m plug_jax`."""

import sys

from plug_jax.held_interrupts import hold_interrupts, let_interrupts_end


def run() -> int:
    """The command of the command line, see `plug_jax.cli.main`; returns its status."""
    try:
        hold_interrupts()
        from plug_jax.huge_pages import ask_for_huge_pages

        ask_for_huge_pages()
        # Only now, as nothing of it is to be imported twice.
        from plug_jax.cli.main import main

        return main()
    except KeyboardInterrupt as error:  # before or after what `main` does
        let_interrupts_end()  # one is enough
        from plug_jax.cli.main import report

        return report(error)
    finally:
        let_interrupts_end()  # while Python ends nothing would catch it


if __name__ == "__main__":
    sys.exit(run())
