"""`plug-jax bench decode`: tokens a second of cached generation, beside two ways to do without it.

Beside the same model without a cache, and beside Hugging Face's `generate` on an encoder-decoder of
the same size in PyTorch; random weights, in float32, on the CPU, in one process.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from plug_jax.benchmarks.writers import Cached, HuggingFace, Uncached, Way
from plug_jax.config import PlugConfig
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.inference.model import InferenceModel
from plug_jax.models.plug import PlugModel

_HEAD_DIM = 64
PYTORCH_MISSING = "not measured: pip install 'plug-jax[parity]' (PyTorch and transformers)"


def config_of(size: str, *, vocab_size: int, max_positions: int) -> PlugConfig:
    """Of "HIDDENxLAYERS": as many encoder as decoder layers, heads of 64, a four times wider MLP.

    Raises:
        PlugError: it reads otherwise, or the hidden size is no multiple of 64.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", size)
    hidden, layers = map(int, found.groups()) if found else (0, 0)
    if not layers or not hidden or hidden % _HEAD_DIM:
        raise PlugError(
            f"a size is HIDDENxLAYERS, such as 768x6, of a hidden size that is a multiple of "
            f"{_HEAD_DIM}; not {size!r}"
        )
    return PlugConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        num_heads=hidden // _HEAD_DIM,
        head_dim=_HEAD_DIM,
        mlp_dim=4 * hidden,
        max_positions=max_positions,
        init_std=0.02,
    )


def random_model(config: PlugConfig, vocabulary: PlugVocabulary) -> InferenceModel:
    """A model that nobody trained."""
    init = jax.jit(PlugModel(config).init)
    params = init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return InferenceModel(config, nn.unbox(params), vocabulary)


@dataclasses.dataclass(frozen=True)
class DecodeSpeed:
    """Several timed passes of one way to write `tokens` tokens, of all rows together."""

    name: str
    tokens: int
    seconds: tuple[float, ...]  # of each pass
    core_seconds: tuple[float, ...]  # of all cores together
    first_seconds: float  # of the first call, with compilation; not among `seconds`

    @property
    def tokens_per_second(self) -> float:
        """Median over the passes."""
        return self.tokens / statistics.median(self.seconds)

    @property
    def tokens_per_core_second(self) -> float:
        """Median over the passes; threads that wait for each other by spinning count as well."""
        return self.tokens / statistics.median(self.core_seconds)

    def to_json(self) -> dict[str, Any]:
        """Rates (median over the passes, and of the slowest and fastest)."""
        return {
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_second_range": [
                self.tokens / max(self.seconds),
                self.tokens / min(self.seconds),
            ],
            "tokens_per_core_second": self.tokens_per_core_second,
            "first_call_seconds": self.first_seconds,
        }


def measure(
    model: InferenceModel,
    *,
    batch: int,
    new_tokens: int,
    top_k: int | None,
    passes: int,
    report: Callable[[str], None],
) -> list[DecodeSpeed]:
    """Speeds of "cached", "uncached" and, if it is installed, "hugging_face".

    Each of `passes` rounds goes once through all ways, so that what else the machine does falls on
    all of them. Every row reads one prompt and writes exactly `new_tokens` tokens. "uncached"
    writes a few tokens in room for all, which costs as much for each; before it is timed, its
    tokens are compared with those of the cache.

    Args:
      model: of any size, on one device.
      batch: rows.
      new_tokens: of each row.
      top_k: how many tokens to draw from; None: the likeliest, and only then is there "uncached".
      passes: how often everything is timed.
      report: called with a line for people who wait.

    Raises:
        PlugError: cached and uncached text differ.
    """
    ways: list[Way] = [Cached(model, batch, new_tokens, top_k)]
    if top_k is None:
        ways.append(Uncached(model, batch, new_tokens))
    if pytorch_is_installed():
        ways.append(HuggingFace(model, batch, new_tokens, top_k))
    return timed(ways, passes=passes, report=report, check=_compare)


def timed(
    ways: Sequence[Way],
    *,
    passes: int,
    report: Callable[[str], None],
    check: Callable[[dict[str, np.ndarray]], None] = lambda _: None,
) -> list[DecodeSpeed]:
    """Speeds of `ways`, in rounds through all of them after a first call of each.

    `check` gets the texts of the first calls, by name, before anything is timed.
    """
    first_texts, first_seconds = {}, {}
    for way in ways:
        report(f"{way.name}: first call")
        start = time.perf_counter()
        first_texts[way.name] = way.write()
        first_seconds[way.name] = time.perf_counter() - start
    check(first_texts)
    seconds: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    for round_ in range(passes):
        for way in ways:
            report(f"{way.name}: pass {round_ + 1} of {passes}")
            wall, core = time.perf_counter(), time.process_time()
            way.write()
            seconds[way.name].append((time.perf_counter() - wall, time.process_time() - core))
    return [
        DecodeSpeed(
            way.name,
            way.tokens,
            tuple(wall for wall, _ in seconds[way.name]),
            tuple(core for _, core in seconds[way.name]),
            first_seconds[way.name],
        )
        for way in ways
    ]


def pytorch_is_installed() -> bool:
    """Whether Hugging Face's generation can be measured."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def _compare(texts: dict[str, np.ndarray]) -> None:
    if "uncached" not in texts:
        return
    uncached = texts["uncached"]
    cached = texts["cached"][:, : uncached.shape[1]]
    if not np.array_equal(cached, uncached):
        raise PlugError(
            f"the cached decoder writes {cached.tolist()}, without the cache it is "
            f"{uncached.tolist()}: nothing was measured"
        )
