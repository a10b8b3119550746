"""LoRA (Hu et al., 2021, arXiv 2106.09685): low-rank updates of a frozen model.

qwix has a LoRA for flax.linen, but it creates its parameters inside the model's modules during
tracing, one for a whole fused projection of queries, keys and values, and cannot merge them.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.parameter_paths import by_path, in_stack

# Its parameters' place in the tree: lora/encoder/layers/attention/query/a.
LORA = "lora"
# Frozen parts; the model's and objectives' heads are trained.
_BODY = ("embeddings", "encoder", "decoder")

Target = Literal["query", "key", "value", "out", "wi", "wo"]


class _Kernel(NamedTuple):
    """A module's kernel: [layers, *inputs, *outputs]; fused ones have an axis in between."""

    targets: tuple[str, ...]
    inputs: int  # number of input axes
    fused: bool = False


_KERNELS = {
    "qkv": _Kernel(("query", "key", "value"), 1, fused=True),
    "key_value": _Kernel(("key", "value"), 1, fused=True),
    "query": _Kernel(("query",), 1),
    "out": _Kernel(("out",), 2),
    "wi": _Kernel(("wi",), 1),
    "wo": _Kernel(("wo",), 1),
}


class _Adapter(NamedTuple):
    path: str  # path of its "a" and "b"
    inputs: int
    part: int | None  # index on the fused axis


@dataclasses.dataclass(frozen=True)
class Lora:
    """W + (alpha / rank) A B instead of W, in every layer: A [inputs, rank], B [rank, outputs].

    Only A, B and heads are trained; embeddings, encoder and decoder are frozen and have no
    optimizer slots. A is initialised uniformly in +-1 / sqrt(inputs), B is 0. The product is added
    to the kernel before use, so there is no LoRA dropout. Checkpoints store W, A and B separately;
    they are merged when opened for use.
    """

    rank: int = 8
    alpha: float = 16.0
    # In self- and cross-attention and MLP: query, key, value, out, wi (the MLP's first), wo.
    targets: tuple[Target, ...] = ("query", "value")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rank < 1 or not self.alpha > 0 or not self.targets:
            raise PlugError(
                "Lora: rank must be 1 or more, alpha positive, and targets at least one, got "
                f"{self.rank}, {self.alpha} and {self.targets}"
            )

    def frozen(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """The frozen parts of the model."""
        return tuple(name for name in _BODY if name in params)

    def abstract(self, boxed: Mapping[str, Any]) -> Any:
        """The model's parameters and LoRA's, as boxed ShapeDtypeStructs with logical axes."""
        leaves = {}
        for path, kernel in by_path(boxed).items():
            for adapter in self._adapters(path):
                shape, names = kernel.value.shape, kernel.names
                first = 1 + adapter.inputs
                then = first + (adapter.part is not None)
                for name, own_shape, own_names in (
                    ("a", (*shape[:first], self.rank), (*names[:first], None)),
                    ("b", (shape[0], self.rank, *shape[then:]), (names[0], None, *names[then:])),
                ):
                    leaf = jax.ShapeDtypeStruct(own_shape, jnp.float32)
                    leaves[f"{adapter.path}/{name}"] = kernel.replace(value=leaf, names=own_names)
        return unflatten_dict(leaves, sep="/")[LORA]

    def init(self, boxed: Mapping[str, Any], rng: jax.Array) -> Any:
        """Initial float32 parameters; each depends only on its path."""

        def draw(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            if path.endswith("/b"):
                return jnp.zeros(leaf.shape)
            bound = 1 / math.sqrt(math.prod(leaf.shape[1:-1]))
            key = jax.random.fold_in(rng, zlib.crc32(path.encode()))
            return jax.random.uniform(key, leaf.shape, minval=-bound, maxval=bound)

        leaves = by_path(nn.unbox(self.abstract(boxed)))
        return unflatten_dict({path: draw(path, leaf) for path, leaf in leaves.items()}, sep="/")

    def merge(self, params: Mapping[str, Any]) -> Any:
        """The model's own parameters, with the products added to its kernels."""
        leaves = by_path(params)
        whole = {
            path: self.merged(path, leaf, leaves.__getitem__)
            for path, leaf in leaves.items()
            if not path.startswith(f"{LORA}/")
        }
        return unflatten_dict(whole, sep="/")

    def merged(self, path: str, kernel: Any, read: Callable[[str], Any]) -> Any:
        """A parameter, or one layer of it, merged; `read` gives the corresponding A and B."""
        for adapter in self._adapters(path):
            a, b = (jnp.asarray(read(f"{adapter.path}/{name}")) for name in ("a", "b"))
            layers = a.ndim - 1 - adapter.inputs  # number of layer axes: 1 or 0
            inputs, outputs = "ij"[: adapter.inputs], "kl"[: b.ndim - 1 - layers]
            added = jnp.einsum(f"...{inputs}r,...r{outputs}->...{inputs}{outputs}", a, b)
            added *= self.alpha / self.rank
            if adapter.part is None:
                kernel = kernel + added
            else:
                kernel = jnp.asarray(kernel).at[..., adapter.part, :, :].add(added)
        return kernel

    def _adapters(self, path: str) -> Iterator[_Adapter]:
        """The adapters of the parameter at a path."""
        if not in_stack(path) or path.startswith(f"{LORA}/") or not path.endswith("/kernel"):
            return
        *parents, module, _ = path.split("/")
        kernel = _KERNELS.get(module, _Kernel((), 0))
        for part, target in enumerate(kernel.targets):
            if target in self.targets:
                where = "/".join((LORA, *parents, target))
                yield _Adapter(where, kernel.inputs, part if kernel.fused else None)
