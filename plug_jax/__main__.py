"""The `plug-jax` command, also as `python -m plug_jax`."""

import sys

from plug_jax.held_interrupts import hold_interrupts, let_interrupts_end


def run() -> int:
    """Run the command line, see `plug_jax.cli.main`; return the exit status."""
    try:
        hold_interrupts()
        from plug_jax.malloc_tunables import set_malloc_tunables

        set_malloc_tunables()
        # Only now, so that nothing is imported twice.
        from plug_jax.cli.main import main

        status = main()
        if compilation := sys.modules.get("plug_jax.compilation"):
            compilation.leave(status)
        return status
    except KeyboardInterrupt as error:  # before or after `main` runs
        let_interrupts_end()  # one is enough
        from plug_jax.cli.main import report

        return report(error)
    finally:
        let_interrupts_end()  # nothing would catch it while Python exits


if __name__ == "__main__":
    sys.exit(run())
