"""The gin files of t5x/ and their documented commands, without t5x: all names exist."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from plug_jax.cli.gin_statements import MACRO, Piece, Statement, read_files

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.name for path in (ROOT / "gin_configs" / "t5x").glob("*.gin"))
# Settings of t5x's own files that ours and the documentation use.
T5X_MACROS = {
    "pretrain": "MODEL_DIR TRAIN_STEPS BATCH_SIZE MIXTURE_OR_TASK_NAME",
    "eval": "CHECKPOINT_PATH EVAL_OUTPUT_DIR MIXTURE_OR_TASK_NAME",
    "infer": "CHECKPOINT_PATH INFER_OUTPUT_DIR MIXTURE_OR_TASK_NAME",
}
# What a file needs besides itself.
BESIDE = {
    "mesh.gin": ["t5x/palm_pretrain.gin", "mesh/cpu8.gin"],
    "initial_checkpoint.gin": ["t5x/palm_pretrain.gin"],
    "model.gin": ["objectives/structbert.gin"],
}


@pytest.fixture(scope="module")
def search_paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    stubs = tmp_path_factory.mktemp("stubs")
    for name, macros in T5X_MACROS.items():
        path = stubs / "t5x" / "configs" / "runs" / f"{name}.gin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{macro} = None\n" for macro in macros.split()))
    return [stubs, ROOT / "gin_configs"]


def statements(pieces: list[Piece]) -> list[Statement]:
    return [statement for piece in pieces for statement in piece.statements]


def named(statement: Statement) -> Iterator[tuple[str, str | None]]:
    """Each `module.name` of plug_jax that a statement configures or refers to."""
    imports = statement.origin.imports
    names = [(statement.selector, statement.parameter)]
    names += [(reference.name, None) for reference in statement.references]
    for name, parameter in names:
        first, _, rest = name.partition(".")
        if name != MACRO and imports[first].module.startswith("plug_jax"):
            yield f"{imports[first].module}.{rest}", parameter


def parameters(dotted: str) -> set[str] | None:
    """Parameters of a function or class, None for any; KeyError if there is none of that name."""
    module, _, name = dotted.rpartition(".")
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if path.exists() and path.read_text(encoding="utf-8").startswith('"""Needs t5x.'):
        return _declared(ast.parse(path.read_text(encoding="utf-8")), name)
    signature = inspect.signature(vars(importlib.import_module(module))[name])
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    return None if inspect.Parameter.VAR_KEYWORD in kinds else set(signature.parameters)


def _declared(module: ast.Module, name: str) -> set[str] | None:
    (found,) = [node for node in module.body if getattr(node, "name", None) == name]
    if isinstance(found, ast.ClassDef):
        (found,) = [node for node in found.body if getattr(node, "name", None) == "__init__"]
    assert isinstance(found, ast.FunctionDef)
    arguments = found.args
    if arguments.kwarg is not None:
        return None
    return {one.arg for one in (*arguments.args, *arguments.kwonlyargs)}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_things(name: str, search_paths: list[Path]) -> None:
    checked = 0
    for statement in statements(read_files([f"t5x/{name}"], search_paths)):
        for dotted, parameter in named(statement):
            known = parameters(dotted)
            assert parameter is None or known is None or parameter in known, statement.place
            checked += 1
    assert checked


@pytest.mark.parametrize("name", NAMES)
def test_every_macro_is_set(name: str, search_paths: list[Path]) -> None:
    files = [*BESIDE.get(name, []), f"t5x/{name}", "models/tiny.gin"]
    found = statements(read_files(files, search_paths))
    given = {statement.setting for statement in found if statement.selector == MACRO}
    used = {
        "/".join(reference.scopes)
        for statement in found
        for reference in statement.references
        if reference.name == MACRO
    }
    assert used - {"gin.REQUIRED"} <= given


def commands() -> list[tuple[str, list[str]]]:
    """Each `python -m t5x.SCRIPT` of the page and the gin files."""
    texts = {"t5x.md": (ROOT / "docs" / "t5x.md").read_text(encoding="utf-8")}
    for name in NAMES:
        text = (ROOT / "gin_configs" / "t5x" / name).read_text(encoding="utf-8")
        texts[name] = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    found = []
    for where, text in texts.items():
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            if line.strip().startswith("python -m t5x."):
                found.append((where, shlex.split(line)[2:]))
    return found


@pytest.mark.parametrize(("where", "words"), commands())
def test_commands_name_files_and_macros(
    where: str, words: list[str], search_paths: list[Path]
) -> None:
    script, *arguments = words
    assert script in ("t5x.train", "t5x.eval", "t5x.infer")
    files = [a.partition("=")[2] for a in arguments if a.startswith("--gin_file=")]
    found = statements(read_files(files, search_paths))
    known = {statement.setting for statement in found if statement.selector == MACRO}
    given = {a.removeprefix("--gin.").partition("=")[0] for a in arguments if "--gin." in a}
    assert given <= known
    assert "--gin_search_paths=gin_configs" in arguments


def test_the_commands_were_found() -> None:
    assert len(commands()) >= 8
