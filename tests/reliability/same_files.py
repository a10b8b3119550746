"""Whether two runs left the same files in their MODEL_DIRs, times aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plug_jax.training.writers import read_metrics

_ARRAYS = ("params", "optimizer")
# Files with times, and files compared by content.
_TIMES = ("_CHECKPOINT_METADATA", "_METADATA", "commit_success.txt", "checksums.sha256")
# Counts of what was read, which exceeds what was trained on by the buffered examples: how many
# these are depends on timing. The reasons must be equal.
_READ_AHEAD = ("dropped", "changed")


def differences(ours: Path, theirs: Path) -> list[str]:
    """The differences, one line each: files, arrays bit by bit, records, summary, scalars."""
    found = []
    names = [_names(directory) for directory in (ours, theirs)]
    found += [f"only here: {name}" for name in sorted(names[0] - names[1])]
    found += [f"only there: {name}" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        if _content(ours / name) != _content(theirs / name):
            found.append(f"differs: {name}")
    if _records(ours) != _records(theirs):
        found.append("differs: metrics.jsonl")
    if _scalars(ours) != _scalars(theirs):
        found.append("differs: scalars of TensorBoard")
    for step in sorted(_steps(ours) & _steps(theirs)):
        for item in _ARRAYS:
            a, b = (_arrays(one / "checkpoints" / step / item) for one in (ours, theirs))
            if a.keys() != b.keys():
                found.append(f"differs: {item} of step {step} are other arrays")
            found += [
                f"differs: {item} of step {step}: {name}"
                for name in a.keys() & b.keys()
                if a[name].dtype != b[name].dtype
                or not np.array_equal(a[name], b[name], equal_nan=True)
            ]
    return found


def _steps(model_dir: Path) -> set[str]:
    return {path.name for path in (model_dir / "checkpoints").iterdir()}


def _names(model_dir: Path) -> set[str]:
    """Names of files that both should have, except those compared by content."""
    names = {str(p.relative_to(model_dir)) for p in model_dir.rglob("*") if p.is_file()}
    return {name for name in names if not _is_compared_by_content(Path(name))}


def _is_compared_by_content(name: Path) -> bool:
    if name.parts[0] in ("tensorboard", "metrics.jsonl", "goodput.json"):
        return True
    of_step = name.parts[2:] if name.parts[0] == "checkpoints" else ()
    # A data position includes how far a pipeline had read ahead, without effect on later data.
    return bool(of_step) and (of_step[0] in _ARRAYS or ".data-" in name.name)


def _content(path: Path) -> Any:
    if path.name == "summary.json":
        summary = _without_times(json.loads(path.read_text()))
        del summary["goodput"]
        return {k: sorted(v) if k in _READ_AHEAD else v for k, v in summary.items()}
    if path.name in _TIMES or path.suffix == ".index":
        return None  # data positions, see above
    if path.name.endswith(".counts.json"):
        return {k: sorted(v) for k, v in json.loads(path.read_text()).items()}
    return path.read_bytes()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if "second" not in k}
    return value


def _records(model_dir: Path) -> list[str]:
    """JSON, in which NaN is equal to NaN."""
    return [json.dumps(_without_times(record)) for record in read_metrics(model_dir)]


def _scalars(model_dir: Path) -> dict[str, list[tuple[int, str]]]:
    """As TensorBoard shows them."""
    shown = EventAccumulator(str(model_dir / "tensorboard"), size_guidance={"scalars": 0})
    shown.Reload()
    return {
        tag: [(one.step, repr(one.value)) for one in shown.Scalars(tag)]
        for tag in shown.Tags()["scalars"]
        if "second" not in tag and not tag.startswith("goodput")
    }


def _arrays(directory: Path) -> dict[str, np.ndarray]:
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(directory)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
