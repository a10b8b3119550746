"""The folder `tasks` of a checkout, under its name in a wheel: `plug_jax.tasks`.

In a wheel the package itself exists, and Python prefers it to this file. The top-level name `tasks`
is too common to rely on: the current directory may have a module with this name.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / "tasks")]
