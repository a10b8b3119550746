"""The folder `tasks` of a checkout, under the name that it has in a wheel: `plug_jax.tasks`.

A wheel has the package itself, which Python takes before this file. The top-level name `tasks` is
too common to rely on: the current directory may have a module of that name.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / "tasks")]
