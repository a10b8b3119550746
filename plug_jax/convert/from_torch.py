"""Import of PyTorch checkpoints, with one layer in memory at a time."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from plug_jax.config import PlugConfig
from plug_jax.convert.arrange import DTYPES, assemble, cast, check_ranks, common_dtype
from plug_jax.convert.checkpoint_writer import write_checkpoint
from plug_jax.convert.model_sizes import ModelOptions, infer_config, vocab_rows
from plug_jax.convert.name_map import Leaf, leaves_of
from plug_jax.convert.progress import atomic_output, progress_bar
from plug_jax.convert.sources import Source
from plug_jax.convert.stored_arrays import LazyArray, chunk_shape
from plug_jax.convert.tensor_names import by_layout
from plug_jax.data.fetched_files import read_json
from plug_jax.data.vocabularies.tokenizer_files import (
    SETTINGS,
    TOKENIZER,
    other_than_default,
    stated_rules,
)
from plug_jax.data.vocabularies.vocabulary import (
    PlugVocabulary,
    WordPieceVocabulary,
    find_vocabulary,
    load_vocabulary,
)
from plug_jax.errors import PlugError

HEADS = ("mlm_head", "sentence_head", "pooler")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of an import."""

    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    vocabulary: str | None = None  # a file or directory; default: the one next to the weights
    dtype: str | None = None  # of all arrays; default: each as stored
    fresh: Sequence[str] = ()  # of HEADS: newly initialised, ignoring the checkpoint's
    drop: Sequence[str] = ()  # patterns of names of tensors to leave out


@dataclasses.dataclass(frozen=True)
class Imported:
    """The result of an import."""

    config: PlugConfig
    tensors: int
    bytes: int  # size of the arrays
    has_vocabulary: bool


def import_weights(source: Source, output: Path, options: ImportOptions) -> Imported:
    """Write `source` as a checkpoint directory at `output`, which appears when it is complete.

    Every tensor is accounted for before the first is read.

    Raises:
        PlugError: a tensor is missing, unknown, of the wrong shape, or differs between its two
            names or between ranks that should agree; the vocabulary does not fit; `output` exists.
    """
    _check_options(options)
    source = by_layout(source, drop=options.drop, fresh=options.fresh)
    vocabulary = _vocabulary(source, options.vocabulary)
    config = infer_config(source, options.model, vocabulary and vocabulary.vocab_size)
    _say_lengths(source, config)
    leaves = leaves_of(config, source.layout)
    job = _Import(source, options, config, leaves)
    job.check_tensors()
    reads = (source.path, options.vocabulary or source.path)
    with atomic_output(output, reads=reads) as partial:
        total = job.write(partial, vocabulary)
    return Imported(config, len(job.names()), total, vocabulary is not None)


class _Import:
    def __init__(
        self, source: Source, options: ImportOptions, config: PlugConfig, leaves: Sequence[Leaf]
    ) -> None:
        self._source, self._options, self._config = source, options, config
        self._rows = vocab_rows(source)
        self._fresh = [leaf for leaf in leaves if leaf.path.partition("/")[0] in options.fresh]
        self._read = [leaf for leaf in leaves if leaf not in self._fresh]

    def names(self) -> set[str]:
        """Names of the tensors that are read."""
        return {name for leaf in self._read for i in leaf.layers for name in leaf.names(i)}

    def check_tensors(self) -> None:
        """PlugError that lists every tensor that is missing, unknown or of another shape."""
        check_ranks(self._read, len(self._source.ranks), rows=self._rows)
        needed, there = self.names(), self._source.ranks[0].keys()
        problems = [f"missing: {name}{_hint(self._read, name)}" for name in sorted(needed - there)]
        problems += [
            f"not in the model: {name} (leave it out with --drop '{name}')"
            for name in sorted(there - needed)
        ]
        problems += [problem for leaf in self._read for problem in self._misfits(leaf)]
        if problems:
            more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
            raise PlugError(
                f"{self._source.path} is not accounted for:\n  "
                + "\n  ".join([*problems[:20], *more])
            )
        if self._source.left_out:
            print(f"left out, as requested: {', '.join(self._source.left_out)}", file=sys.stderr)
        if self._fresh:
            paths = ", ".join(leaf.path for leaf in self._fresh)
            print(f"freshly initialised, as requested: {paths}", file=sys.stderr)

    def _misfits(self, leaf: Leaf) -> Iterator[str]:
        expected = leaf.torch_shape(ranks=len(self._source.ranks), rows=self._rows)
        for name in (name for i in leaf.layers for name in leaf.names(i)):
            found = [rank[name] for rank in self._source.ranks if name in rank]
            for tensor in found:
                if tensor.shape != expected:
                    yield f"{name}: {tensor.shape}, should be {expected} ({tensor.where})"
            if len({tensor.dtype for tensor in found}) > 1:
                yield f"{name}: of different dtypes on different ranks"
            for tensor in found[:1]:
                if tensor.dtype.name not in DTYPES:
                    yield f"{name}: {tensor.dtype}; only {', '.join(DTYPES)} are weights"

    def write(self, directory: Path, vocabulary: PlugVocabulary | None) -> int:
        """Write the checkpoint; return the number of bytes of its arrays."""
        leaves = [*self._read, *self._fresh]
        dtypes = {leaf.path: self._dtype(leaf) for leaf in leaves}
        sizes = [math.prod(leaf.shape) * dtypes[leaf.path].itemsize for leaf in leaves]
        with progress_bar("importing", sum(sizes)) as advance:
            arrays = {
                leaf: LazyArray(
                    leaf.shape,
                    dtypes[leaf.path],
                    chunk_shape(leaf.shape, leaf.axes, dtypes[leaf.path]),
                    leaf.stacked,
                    self._maker(leaf, dtypes[leaf.path], advance),
                )
                for leaf in leaves
            }
            write_checkpoint(
                directory,
                params=_tree({a.path: array for a, array in arrays.items() if a.used}),
                unused=_tree({a.path: array for a, array in arrays.items() if not a.used}),
                config=self._config,
                vocabulary=vocabulary,
                converted_from={
                    "layout": self._source.layout.name,
                    "ranks": len(self._source.ranks),
                    "vocab_rows": self._rows,
                    "dtypes": self._narrower(dtypes),
                    "fresh": list(self._options.fresh),
                },
            )
        return sum(sizes)

    def _dtype(self, leaf: Leaf) -> np.dtype:
        """Dtype of a stored parameter, from which all its tensors can be recovered."""
        if self._options.dtype is not None:
            return DTYPES[self._options.dtype]
        like = [leaf] if leaf in self._read else self._read[:1]
        names = [name for one in like for i in one.layers for name in one.names(i)]
        return common_dtype([self._source.ranks[0][name].dtype for name in names])

    def _narrower(self, dtypes: Mapping[str, np.dtype]) -> dict[str, str]:
        """Dtypes of tensors that share a parameter with tensors of another dtype."""
        if self._options.dtype is not None:
            return {}
        return {
            name: self._source.ranks[0][name].dtype.name
            for leaf in self._read
            for i in leaf.layers
            for name in leaf.names(i)
            if self._source.ranks[0][name].dtype != dtypes[leaf.path]
        }

    def _maker(
        self, leaf: Leaf, dtype: np.dtype, advance: Callable[[int], None]
    ) -> Callable[[int], np.ndarray]:
        """The function that makes a layer of a parameter."""

        def make(layer: int) -> np.ndarray:
            advance(math.prod(leaf.layer_shape) * dtype.itemsize)
            if leaf in self._fresh:
                return _fresh_values(leaf, self._config.init_std).astype(dtype)
            return self._merged(leaf, layer, dtype)

        return make

    def _merged(self, leaf: Leaf, layer: int, dtype: np.dtype) -> np.ndarray:
        parts = []
        for name in leaf.names(layer):
            tensors = [rank[name] for rank in self._source.ranks]
            pieces = [cast(tensors[0].read(), dtype, name)]
            for tensor in tensors[1:]:
                piece = cast(tensor.read(), dtype, name)
                if leaf.entry.split is not None:
                    pieces.append(piece)
                elif piece.tobytes() != pieces[0].tobytes():
                    raise PlugError(
                        f"{name} is not sharded over ranks, yet differs between "
                        f"{tensors[0].where} and "
                        f"{tensor.where}: these files do not belong to one checkpoint"
                    )
            parts.append(pieces)
        return assemble(leaf, parts, rows=self._rows)


def _vocabulary(source: Source, asked: str | None) -> PlugVocabulary | None:
    """The requested one, else that next to the weights; PlugError on contradicting settings."""
    beside = (asked or find_vocabulary(directory) for directory in source.around)
    path = next((path for path in beside if path is not None), None)
    if path is None:
        return None
    vocabulary = load_vocabulary(path)
    where = path if tf.io.gfile.isdir(path) else os.path.dirname(path)
    if isinstance(vocabulary, WordPieceVocabulary) and stated_rules(where) is None:
        for directory in source.around:
            said = stated_rules(directory)
            if said is not None and said != vocabulary.rules:
                raise PlugError(
                    f"{SETTINGS} or {TOKENIZER} in {directory} says {other_than_default(said)}, "
                    f"and nothing beside {path} does; copy them there"
                )
    return vocabulary


def _say_lengths(source: Source, config: PlugConfig) -> None:
    """Report on standard error if the tokenizer is for shorter texts than the model."""
    for path in (directory / SETTINGS for directory in source.around):
        length = read_json(path).get("model_max_length") if path.exists() else None
        if isinstance(length, int | float) and length < config.max_positions:
            print(
                f"{path} has model_max_length = {length:g}: rows may be longer here, up to the "
                f"{config.max_positions} positions of the model, but it may not have been "
                "trained on such rows",
                file=sys.stderr,
            )


def _check_options(options: ImportOptions) -> None:
    for name in options.fresh:
        if name not in HEADS:
            raise PlugError(f"--fresh {name}: only {', '.join(HEADS)} can be initialised anew")
    if options.dtype is not None and options.dtype not in DTYPES:
        raise PlugError(f"--dtype {options.dtype}: there are {', '.join(DTYPES)}")
    epsilon = options.model.layer_norm_epsilon
    if epsilon is not None and not math.isfinite(epsilon):
        raise PlugError(f"--layer_norm_epsilon {epsilon}: it must be a small number, such as 1e-12")
    if options.model.num_sentence_classes is not None and "sentence_head" not in options.fresh:
        raise PlugError("--num_sentence_classes is for a fresh head: add --fresh sentence_head")


def _hint(leaves: Sequence[Leaf], name: str) -> str:
    heads = {
        leaf.path.partition("/")[0] for leaf in leaves for i in leaf.layers if name in leaf.names(i)
    }
    head = next(iter(heads & set(HEADS)), None)
    return f" (initialise it anew with --fresh {head})" if head else ""


def _fresh_values(leaf: Leaf, std: float) -> np.ndarray:
    """float32: normal for kernels, ones for scales, zeros for biases, as in a new model."""
    kind = leaf.path.rpartition("/")[2]
    if kind == "kernel":
        rng = np.random.default_rng([ord(c) for c in leaf.path])
        return rng.normal(0.0, std, leaf.layer_shape).astype(np.float32)
    return np.full(leaf.layer_shape, kind == "scale", np.float32)


def _tree(by_path: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in by_path.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
