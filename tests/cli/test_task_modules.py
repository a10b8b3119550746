"""Our own modules are found even if the current directory has modules of the same names."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

import pytest

from plug_jax.cli import gin_config, task_modules
from plug_jax.data.pipeline.pipeline import import_tasks
from plug_jax.errors import PlugError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def short_name(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No module `tasks` imported yet, as in a new process; restored afterwards."""
    names = [name for name in sys.modules if name.partition(".")[0] == "tasks"]
    before = {name: sys.modules.pop(name) for name in names}
    # Only Python's own finders: an editable install adds one that knows our folders.
    monkeypatch.setattr(sys, "meta_path", [BuiltinImporter, FrozenImporter, PathFinder])
    task_modules.allow_short_name()
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "tasks"]:
        del sys.modules[name]
    sys.modules.update(before)


def test_the_short_name_is_no_second_copy(short_name: None) -> None:
    import_tasks("tasks.pretrain")
    assert sys.modules["tasks.pretrain"] is importlib.import_module("plug_jax.tasks.pretrain")
    assert sys.modules["tasks"] is importlib.import_module("plug_jax.tasks")
    with pytest.raises(PlugError, match="'tasks.nothing' cannot be imported"):
        import_tasks("tasks.nothing")


@pytest.mark.parametrize("package", [False, True])
def test_the_users_own_tasks(
    short_name: None, package: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("tasks/__init__.py" if package else "tasks.py")
    path.parent.mkdir(exist_ok=True)
    path.write_text("MINE = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_tasks("tasks")
    assert sys.modules["tasks"].MINE
    with pytest.raises(PlugError, match="tasks.pretrain.* such as 'plug_jax.tasks.demo'"):
        import_tasks("tasks.pretrain")
    gin_file = tmp_path / "mine.gin"
    gin_file.write_text(
        "from __gin__ import dynamic_registration\nfrom tasks import pretrain\nA=1\n"
    )
    with pytest.raises(PlugError, match="mine.gin:2: from .*; the tasks of plug-jax are plug_jax"):
        gin_config.configured(dict, files=[str(gin_file)], bindings=[])
    assert importlib.import_module("plug_jax.tasks.pretrain").structbert_text


def test_our_files_do_not_use_the_short_name() -> None:
    for path in [*(ROOT / "gin_configs").rglob("*.gin"), *(ROOT / "tasks").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert "from tasks" not in text and "import tasks" not in text, path


def test_commands_run_beside_modules_of_these_names(tmp_path: Path) -> None:
    for name in ("tasks.py", "gin_configs.py"):
        (tmp_path / name).write_text("raise RuntimeError('not to be imported')\n")
    (tmp_path / "gin_configs" / "runs").mkdir(parents=True)
    command = ["evaluate", "--gin_file=runs/evaluate.gin", "--gin_file=mesh/cpu1.gin"]
    run = subprocess.run(
        [sys.executable, "-m", "plug_jax", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("plug-jax: error: required, but not set: CHECKPOINT")


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "plug_jax").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(settings["packages"]) == found | {"plug_jax.tasks", "plug_jax.gin_configs"}
    assert all((folder / "__init__.py").exists() for folder in folders)


@pytest.mark.slow
def test_a_wheel_has_nothing_beside_plug_jax(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tracked = ["plug_jax", "tasks", "gin_configs", "pyproject.toml", "README.md", "LICENSE"]
    files = subprocess.run(
        ["git", "ls-files", "--", *tracked], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps",
         "--wheel-dir", str(tmp_path), str(source)],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0].split("-")[0] for name in names} == {"plug_jax"}
    program = (
        "import plug_jax.tasks.pretrain as module; from plug_jax.cli import gin_config; "
        "print(module.__file__); print(gin_config.search_paths()[-1])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    tasks, gin_files = map(Path, run.stdout.split())
    assert tasks == tmp_path / "site" / "plug_jax" / "tasks" / "pretrain.py"
    assert (gin_files / "runs" / "evaluate.gin").is_file()
    assert tmp_path / "site" in gin_files.parents
