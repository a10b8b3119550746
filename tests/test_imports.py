"""Imports go one way, and importing the command line is cheap."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each part of plug_jax (and tasks) may import of the others, besides those of MAY_ALL,
# which every part may.
MAY_ALL = (
    "atomic_files",
    "cpu_cores",
    "errors",
    "field_types",
    "file_locks",
    "file_names",
    "standard_error",
    "strict_json",
)
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {"inference", "partitioning", "tensorflow_import"},
    "__main__": {"cli", "held_interrupts", "malloc_tunables"},
    "atomic_files": set(),
    "cpu_cores": set(),
    "errors": set(),
    "file_locks": set(),
    "file_names": set(),
    "standard_error": set(),
    "strict_json": set(),
    "field_types": set(),
    "held_interrupts": set(),
    "malloc_tunables": {"held_interrupts"},
    "tensorflow_import": set(),
    "named_modules": set(),
    "config": set(),
    "losses": {"ops"},
    "metrics": set(),
    "partitioning": {"config"},
    "ops": set(),
    "models": {"config", "losses", "ops", "partitioning"},
    "data": {"named_modules"},
    "objectives": {"config", "data", "losses", "metrics", "models"},
    "downstream": {"clue", "data", "objectives"},
    "parameter_paths": set(),
    "techniques": {"losses", "metrics", "models", "objectives", "parameter_paths"},
    "hosts": set(),
    "compilation": {"hosts"},
    "checkpoints": {
        "config",
        "data",
        "hosts",
        "models",
        "objectives",
        "partitioning",
        "techniques",
    },
    "training": {
        "checkpoints",
        "compilation",
        "config",
        "data",
        "downstream",
        "hosts",
        "metrics",
        "models",
        "objectives",
        "parameter_paths",
        "partitioning",
        "plots",
        "techniques",
    },
    "finetuning": {
        "checkpoints",
        "clue",
        "data",
        "downstream",
        "models",
        "objectives",
        "training",
    },
    "decoding": {"ops"},
    "plots": set(),
    "task_reports": {"data", "downstream", "objectives"},
    "generation_tasks": {"data"},
    "inference": {
        "checkpoints",
        "clue",
        "compilation",
        "config",
        "data",
        "decoding",
        "downstream",
        "losses",
        "models",
        "objectives",
        "ops",
        "partitioning",
    },
    "serving": {"config", "data", "decoding", "downstream", "inference"},
    "benchmarks": {
        "compilation",
        "config",
        "convert",
        "data",
        "inference",
        "models",
        "objectives",
        "partitioning",
        "planning",
        "plots",
        "techniques",
        "training",
    },
    "convert": {
        "checkpoints",
        "config",
        "data",
        "downstream",
        "models",
        "objectives",
        "parameter_paths",
        "partitioning",
    },
    "demo": {
        "compilation",
        "data",
        "downstream",
        "finetuning",
        "inference",
        "objectives",
        "plots",
        "training",
    },
    "clue": set(),
    "planning": {
        "checkpoints",
        "config",
        "models",
        "objectives",
        "ops",
        "partitioning",
        "training",
    },
    "cli": {
        "__init__",
        "benchmarks",
        "checkpoints",
        "clue",
        "compilation",
        "config",
        "convert",
        "data",
        "decoding",
        "downstream",
        "demo",
        "finetuning",
        "generation_tasks",
        "hosts",
        "inference",
        "losses",
        "models",
        "named_modules",
        "objectives",
        "ops",
        "partitioning",
        "planning",
        "plots",
        "serving",
        "task_reports",
        "tasks",
        "tensorflow_import",
        "training",
    },
    "t5x_bridge": {
        "checkpoints",
        "config",
        "convert",
        "data",
        "decoding",
        "inference",
        "metrics",
        "models",
        "objectives",
        "partitioning",
        "training",
    },
    "tasks": {"checkpoints", "clue", "data", "downstream", "generation_tasks"},
}


def part_of(path: Path, root: Path) -> str:
    """The part that a source file belongs to: `plug_jax/data/drops.py` -> `data`."""
    relative = path.relative_to(root)
    return "tasks" if relative.parts[0] == "tasks" else relative.with_suffix("").parts[1]


def imported_modules(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of each module or name imported anywhere in a file."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*above, *filter(None, [node.module])))
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args and _imports(node.func):
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def _imports(function: ast.expr) -> bool:
    """Whether it is `importlib.import_module`, under either name."""
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__", "import_named")


def complaint(part: str, name: str) -> str | None:
    """What is wrong with `part` importing `name`, if anything."""
    head, _, rest = name.partition(".")
    if head == "gin":
        return None if part == "cli" else "gin is for cli/ alone"
    if head == "tasks":
        return None if part == "tasks" else "tasks are `plug_jax.tasks`, as in a wheel"
    if head == "gin_configs":
        return None if part == "cli" else "gin files are for cli/ alone"
    if head != "plug_jax":
        return None
    target = rest.partition(".")[0]
    if target not in MAY_IMPORT:
        target = "__init__"
    if target in (*MAY_ALL, part) or target in MAY_IMPORT[part]:
        return None
    return f"{part} may not import {target}"


def violations(root: Path) -> list[str]:
    found = []
    for path in sorted([*(root / "plug_jax").rglob("*.py"), *(root / "tasks").rglob("*.py")]):
        part = part_of(path, root)
        where = path.relative_to(root).as_posix()
        if part not in MAY_IMPORT:
            found.append(f"{where}: '{part}' is not in MAY_IMPORT")
            continue
        for line, name in imported_modules(path, root):
            if message := complaint(part, name):
                found.append(f"{where}:{line}: imports {name}; {message}")
    return found


def test_imports_point_one_way():
    assert violations(ROOT) == []


def test_the_allowed_imports_have_no_cycle():
    done: set[str] = set()
    while ready := {part for part in MAY_IMPORT.keys() - done if MAY_IMPORT[part] <= done}:
        done |= ready
    assert done == MAY_IMPORT.keys()


def test_the_picture_in_contributing_is_true():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    picture = text.partition("## Package layout\n\n```\n")[2].partition("```")[0]
    lines = [line.partition("   ")[0].split() for line in picture.splitlines()]
    height = {part: -number for number, line in enumerate(lines) for part in line}
    folders = {path.parent.name for path in (ROOT / "plug_jax").glob("*/__init__.py")}
    assert folders - height.keys() == set(), "not in the picture"
    assert height.keys() <= MAY_IMPORT.keys()
    for part in height:
        for other in MAY_IMPORT[part] & height.keys():
            assert height[other] < height[part], f"{part} imports {other}, which is no lower"


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        (
            "plug_jax/ops/masks.py",
            "from plug_jax.config import PlugConfig",
            "ops may not import config",
        ),
        (
            "plug_jax/data/preprocessors/masking.py",
            "from plug_jax import models",
            "data may not import models",
        ),
        (
            "plug_jax/inference/model.py",
            "from plug_jax.training.loop import train",
            "inference may not import training",
        ),
        (
            "plug_jax/data/preprocessors/masking.py",
            "import plug_jax.training.loop",
            "data may not import training",
        ),
        (
            "plug_jax/decoding/beam.py",
            "from ..models.plug import X",
            "decoding may not import models",
        ),
        ("plug_jax/config.py", "from . import cli", "config may not import cli"),
        (
            "plug_jax/training/loop.py",
            "def f():\n  from plug_jax.cli import main",
            "may not import cli",
        ),
        ("plug_jax/training/loop.py", "import gin", "gin is for cli/ alone"),
        ("plug_jax/training/loop.py", "from gin import configurable", "gin is for cli/ alone"),
        ("plug_jax/cli/demo.py", "import tasks.demo", "tasks are `plug_jax.tasks`"),
        (
            "plug_jax/training/loop.py",
            "import importlib\nimportlib.import_module('plug_jax.cli.main')",
            "training may not import cli",
        ),
        (
            "plug_jax/data/drops.py",
            "def f():\n  return import_named('plug_jax.tasks.demo')",
            "data may not import tasks",
        ),
        ("tasks/pretrain.py", "import plug_jax.models.plug", "tasks may not import models"),
        ("plug_jax/novel/thing.py", "", "'novel' is not in MAY_IMPORT"),
        ("plug_jax/training/loop.py", "from plug_jax.data.pipeline import pipeline", None),
        ("plug_jax/training/loop.py", "from . import state", None),
        ("plug_jax/cli/train.py", "import gin\nfrom plug_jax.training import loop", None),
        ("plug_jax/cli/inspect.py", "from plug_jax.tasks import pretrain", None),
        ("plug_jax/ops/masks.py", "from plug_jax.errors import PlugError", None),
        (
            "tasks/pretrain.py",
            "from plug_jax.data.preprocessors import masking\nimport ginger",
            None,
        ),
    ],
)
def test_a_wrong_import_is_found(tmp_path, path, source, expected):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    found = violations(tmp_path)
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1
        assert expected in found[0]


def test_the_command_line_is_light_to_import():
    heavy = {"jax", "flax", "tensorflow", "seqio", "numpy", "gin", "torch", "matplotlib"}
    program = "import plug_jax.cli.main as main, sys; main.main([]); print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert heavy & set(run.stdout.splitlines()[-1].split()) == set()
