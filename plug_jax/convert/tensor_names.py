"""Maps a file's tensor names, possibly several per tensor, to the names of a layout."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping, Sequence

import numpy as np

from plug_jax.convert.name_map import BERT, Layout
from plug_jax.convert.sources import Source, some
from plug_jax.convert.tensor_files import Tensor
from plug_jax.errors import PlugError

_POSITIONS = "embeddings.position_embeddings.weight"
_CORE = ("embeddings.", "encoder.", "pooler.")
_BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")


@dataclasses.dataclass(frozen=True)
class _Named:
    """A tensor, its name in the file, and its name in the layout, which may be a second name."""

    in_file: str
    name: str
    tensor: Tensor


def by_layout(source: Source, *, drop: Sequence[str] = (), fresh: Sequence[str] = ()) -> Source:
    """`source` with each tensor under its main name in the layout, and `left_out` filled in.

    A BERT's names may have prefixes (module., bert. or none) and TensorFlow's gamma and beta. Any
    of several names of one tensor will do (`Layout.tied`, gamma and weight); if a file has several,
    their numbers must agree, whatever the dtypes.

    Args:
        source: as opened.
        drop: patterns of names to leave out, in the file's or the layout's spelling.
        fresh: heads that are not read: the first parts of paths in our parameter tree.

    Raises:
        PlugError: a pattern without a match; not a BERT; two names of one tensor that differ; a
            buffer with other values than BERT's; ranks that do not hold the same tensors.
    """
    unread = {
        name
        for entry in source.layout.entries
        if entry.leaf.partition("/")[0] in fresh
        for name in entry.names
    }
    ranks: list[dict[str, Tensor]] = []
    left_out: set[str] = set()
    for tensors in source.ranks:
        kept, dropped = _without_dropped(source, tensors, drop)
        _check_tied(source, [*kept, *dropped], fresh)
        left_out |= {each.in_file for each in dropped}
        found = _one_each(source.layout, kept, tuple(map(_module, unread)))
        asked = found.keys() & unread
        left_out |= asked
        ranks.append(_without_buffers({n: t for n, t in found.items() if n not in asked}))
    for i, rank in enumerate(ranks):
        if difference := sorted(rank.keys() ^ ranks[0].keys()):
            raise PlugError(
                f"ranks 0 and {i} of {source.path} differ in {some(difference)}: these files do "
                "not belong to one checkpoint"
            )
    return dataclasses.replace(source, ranks=ranks, left_out=sorted(left_out))


def _without_dropped(
    source: Source, tensors: Mapping[str, Tensor], drop: Sequence[str]
) -> tuple[list[_Named], list[_Named]]:
    """The tensors that no pattern matches, and those that are left out."""
    in_file = {name for pattern in drop for name in fnmatch.filter(tensors, pattern)}
    prefix = _prefix(source, tensors.keys() - in_file) if source.layout is BERT else None
    named = [
        _Named(name, name if prefix is None else _bert_name(name, prefix), tensor)
        for name, tensor in tensors.items()
    ]
    asked: set[str] = set()
    for pattern in drop:
        by_file = {each.in_file for each in named if fnmatch.fnmatchcase(each.in_file, pattern)}
        by_name = {each.in_file for each in named if fnmatch.fnmatchcase(each.name, pattern)}
        if not by_file and not by_name:
            raise PlugError(f"--drop {pattern}: {source.path} has no such tensor")
        asked |= by_file or by_name
    kept = [each for each in named if each.in_file not in asked]
    return kept, [each for each in named if each.in_file in asked]


def _prefix(source: Source, names: set[str]) -> str:
    """The prefix before `embeddings.` in a BERT's names."""
    prefixes = [name.removesuffix(_POSITIONS) for name in names if name.endswith(_POSITIONS)]
    if len(prefixes) != 1 or prefixes[0].endswith("roberta."):
        raise PlugError(
            f"{source.path} is not a BERT: it has {len(prefixes)} tensors named *{_POSITIONS}"
            + (" and is a RoBERTa, whose positions are others" if len(prefixes) == 1 else "")
            + (f" ({some(sorted(prefixes))}); --drop all but one" if len(prefixes) > 1 else "")
        )
    return prefixes[0]


def _bert_name(name: str, prefix: str) -> str:
    """The name that BertForPreTraining gives a tensor."""
    inner = name.removeprefix(prefix)
    core = name.startswith(prefix) and inner.startswith(_CORE)
    new = f"bert.{inner}" if core else name.removeprefix(prefix.removesuffix("bert."))
    new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", new)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", new)


def _one_each(
    layout: Layout, tensors: Sequence[_Named], heads: tuple[str, ...]
) -> dict[str, Tensor]:
    """By main names. Second ones must agree, except in `heads`, which are not read."""
    groups: dict[str, list[_Named]] = {}
    for each in tensors:
        groups.setdefault(layout.tied.get(each.name, each.name), []).append(each)
    found = {}
    for name, group in groups.items():
        group.sort(key=lambda each: (each.name != name, each.in_file.endswith((".gamma", ".beta"))))
        found[name] = group[0].tensor
        for other in group[1:]:
            if not other.name.startswith(heads) and not _same(group[0].tensor, other.tensor):
                raise PlugError(
                    f"{other.in_file} differs from {group[0].in_file} ({other.tensor.where}); this "
                    "model has one array for both. Leave one of them out: "
                    f"--drop '{other.in_file}'"
                )
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to the narrower dtype."""
    if one.where == other.where or one.shape != other.shape:
        return one.shape == other.shape
    first, second = sorted((one.read(), other.read()), key=lambda array: array.dtype.itemsize)
    with np.errstate(over="ignore"):
        return first.tobytes() == second.astype(first.dtype).tobytes()


def _check_tied(source: Source, tensors: Sequence[_Named], fresh: Sequence[str]) -> None:
    """PlugError if config.json says that the output matrix is untied, but it is absent."""
    matrix = next(iter(source.layout.tied))
    if (
        source.config.get("tie_word_embeddings", True) is False
        and "mlm_head" not in fresh
        and not any(each.name == matrix for each in tensors)
    ):
        raise PlugError(
            f"config.json of {source.path} has tie_word_embeddings = false, and the weights lack "
            f"{matrix}; this model's output layer is its word embeddings. If that is so here too, "
            "set it to true"
        )


def _module(name: str) -> str:
    """The prefix of a head's names: "cls.predictions." for cls.predictions.bias."""
    return ".".join(name.split(".")[:2]) + "."


def _without_buffers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the buffers saved by old releases, which contain 0, 1, 2, ... and zeros."""
    left = dict(tensors)
    for name in _BUFFERS:
        if name in left:
            values = left.pop(name).read().reshape(-1)
            if not np.array_equal(values, np.arange(values.size) * name.endswith("position_ids")):
                raise PlugError(
                    f"{name} holds other values than BERT's; leave it out with --drop '{name}' if "
                    "it does not matter"
                )
    return left
