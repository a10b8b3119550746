"""Modules named in settings: where they are found, and errors for failing ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from plug_jax.cli import gin_config
from plug_jax.cli.objective_names import objectives_named
from plug_jax.data.pipeline.pipeline import import_tasks
from plug_jax.errors import PlugError
from plug_jax.named_modules import import_named

ROOT = Path(__file__).resolve().parents[1]


def test_the_current_directory_is_searched_after_all_others(tmp_path: Path) -> None:
    """As an installed script runs, with its own directory first on the path."""
    script, here = tmp_path / "bin" / "script.py", tmp_path / "here"
    for directory in (script.parent, here):
        directory.mkdir()
    script.write_text(
        "from plug_jax.named_modules import import_named\n"
        "print(import_named('my_length').__name__, import_named('colorsys').__file__)\n"
    )
    (here / "my_length.py").write_text("")
    (here / "colorsys.py").write_text("")
    run = subprocess.run(
        [sys.executable, str(script)],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    mine, python = run.stdout.split()
    assert mine == "my_length" and str(here) not in python


BROKEN = {
    "import json\n\nx = Objective\n": "3: NameError: name 'Objective' is not defined",
    "x = (\n": "1: '(' was never closed",
    "import json\njson.loads('')\n": "2: JSONDecodeError: Expecting value",
    "import no_such_thing\n": "1: ModuleNotFoundError: No module named 'no_such_thing'",
    "from json import nothing\n": "1: ImportError: cannot import name 'nothing' from 'json'",
}


@pytest.mark.parametrize("source", BROKEN)
def test_a_module_that_fails_is_told_by_its_line(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_one.py").write_text(source)
    (tmp_path / "mine.gin").write_text(
        "from __gin__ import dynamic_registration\nimport broken_one\nA = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    told = re.escape(f"{tmp_path}/broken_one.py:{BROKEN[source]}")
    with pytest.raises(PlugError, match=f"^{told}"):
        import_named("broken_one")
    with pytest.raises(PlugError, match=f"mine.gin:2: import broken_one: {told}"):
        gin_config.configured(dict, files=[str(tmp_path / "mine.gin")], bindings=[])
    with pytest.raises(PlugError, match=f"'broken_one' cannot be imported: {told}"):
        import_tasks("broken_one")
    with pytest.raises(PlugError, match=f"--objective broken_one.One: {told}"):
        objectives_named(["broken_one.One"])


def test_no_module_of_a_name() -> None:
    with pytest.raises(PlugError, match="^No module named 'no_such_module'$"):
        import_named("no_such_module")
