"""Whether cached decoding fits its TPUs, and how fast it can be: the facts of one decoding step."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plug_jax.checkpoints.parameters import abstract_params
from plug_jax.config import PlugConfig
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel, cache_shardings
from plug_jax.ops.kv_cache import DecoderCache
from plug_jax.partitioning import Partitioner
from plug_jax.planning.compile import DoesNotFit, compile_step, sharded_bytes
from plug_jax.planning.cost import Cost, cost_of
from plug_jax.planning.topologies import GIB, Topology, compile_only_devices
from plug_jax.training.program import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodePlan:
    """What `plug-jax plan --decode` says of one configuration. Bytes are on one device."""

    topology: str
    mesh: dict[str, int]
    batch_size: int
    encoder_length: int
    max_length: int  # tokens that the cache has room for
    fits: bool
    hbm_needed: int | None  # None: the compiler does not say
    hbm_available: int
    parameters: int  # of the whole model, encoder included, in the compute dtype
    cache: int
    cost: Cost | None  # of one token for every row; None when it does not fit
    tokens_per_second: float | None  # over all rows, at the bound

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        if self.cost is not None:
            values["cost"]["roofline"] = self.cost.roofline.to_dict()
        return values

    @property
    def verdict(self) -> str:
        """One sentence: fits or not, and what to do."""
        what = f"{self.batch_size} rows on {self.topology}"
        available = f"{self.hbm_available / GIB:.2f} GiB"
        if self.fits:
            assert self.hbm_needed is not None
            return f"{what} fit: {self.hbm_needed / GIB:.2f} of {available} a device"
        needed = "more" if self.hbm_needed is None else f"{self.hbm_needed / GIB:.2f} GiB"
        return (
            f"{what} do not fit: they need {needed}, a device has {available}. Use more chips, "
            "more tensor (or fsdp), a smaller BATCH_SIZE or shorter TASK_FEATURE_LENGTHS"
        )


@dataclasses.dataclass(frozen=True)
class DecodeProgram:
    """One token for every row, by the cache: the jitted step and its abstract arguments."""

    params: Any  # in the compute dtype
    tokens: jax.ShapeDtypeStruct  # int32 [B, 1]
    cache: DecoderCache
    step: Any  # jitted (params, tokens, cache) -> (logits [B, 1, V], cache); the cache is donated

    def trace(self) -> jax.stages.Traced:
        """The step traced for the mesh."""
        traced: jax.stages.Traced = self.step.trace(self.params, self.tokens, self.cache)
        return traced


def decode_program(
    config: PlugConfig,
    partitioner: Partitioner,
    *,
    batch_size: int,
    encoder_length: int,
    max_length: int,
) -> DecodeProgram:
    """Build the program; call it, and use it, within `partitioner.context()`.

    Raises:
        PlugError: a model without decoder, or a mesh that does not divide the model or the batch.
    """
    if not config.num_encoder_layers or not config.num_decoder_layers:
        raise PlugError(
            "--decode is for models with a decoder that reads an encoder: use "
            "runs/palm_pretrain.gin"
        )
    for what, length in (("prompts", encoder_length), ("new texts", max_length)):
        if length > config.max_positions:
            raise PlugError(
                f"--decode: {what} of {length:,} tokens are more than the model's "
                f"{config.max_positions:,} positions; set TASK_FEATURE_LENGTHS, such as "
                f"{ {'encoder': config.max_positions, 'decoder': config.max_positions} }"
            )
    partitioner.check_batch(batch_size)
    model = PlugModel(config, unstacked_layers=True)

    def start(params: Any, encoded: jax.Array) -> DecoderCache:
        cache = model.apply({"params": params}, encoded, method="init_cache", max_length=max_length)
        assert isinstance(cache, DecoderCache)
        return cache

    def step(params: Any, tokens: jax.Array, cache: DecoderCache) -> Any:
        return model.apply({"params": params}, tokens, cache, method="decode_step")

    def abstract(leaf: Any, sharding: Any, dtype: Any = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding)

    boxed = abstract_params(model)
    params = jax.tree.map(
        lambda leaf, sharding: abstract(leaf, sharding, jnp.dtype(config.dtype)),
        nn.unbox(boxed),
        partitioner.param_shardings(boxed),
    )
    rows: Any = partitioner.batch_sharding
    shardings = cache_shardings(config, partitioner)
    encoded = jax.ShapeDtypeStruct(
        (batch_size, encoder_length, config.hidden_size), config.dtype, sharding=rows
    )
    return DecodeProgram(
        params=params,
        tokens=jax.ShapeDtypeStruct((batch_size, 1), jnp.int32, sharding=rows),
        cache=jax.tree.map(abstract, jax.eval_shape(start, params, encoded), shardings),
        # The encoder's parameters are not read here, but they are there: it reads the prompts.
        step=jax.jit(step, donate_argnums=2, keep_unused=True, out_shardings=(rows, shardings)),
    )


def make_decode_plan(config: TrainConfig, topology: Topology) -> DecodePlan:
    """Compile one decoding step of the run's model, batch and row lengths, and account for it.

    Raises:
        PlugError: as `decode_program`; no TPU compiler, or no such topology.
    """
    partitioner = dataclasses.replace(
        config.partitioner, devices=compile_only_devices(topology), slices=topology.slices
    )
    lengths = config.train_data.feature_lengths
    batch_size, max_length = config.train_data.batch_size, lengths.get("decoder", 0)
    with partitioner.context():
        program = decode_program(
            config.model,
            partitioner,
            batch_size=batch_size,
            encoder_length=lengths["encoder"],
            max_length=max_length,
        )
        needed: int | None
        try:
            compiled = compile_step(program)
        except DoesNotFit as error:
            cost, needed = None, error.needed
        else:
            cost = cost_of(compiled, topology, partitioner.mesh)
            stats = compiled.executable.memory_analysis()
            needed = stats.peak_memory_in_bytes if stats is not None else None
    return DecodePlan(
        topology=str(topology),
        mesh=dict(partitioner.mesh.shape),
        batch_size=batch_size,
        encoder_length=lengths["encoder"],
        max_length=max_length,
        fits=cost is not None,
        hbm_needed=needed,
        hbm_available=topology.chip.usable_hbm_bytes,
        parameters=sharded_bytes(program.params),
        cache=sharded_bytes(program.cache),
        cost=cost,
        tokens_per_second=batch_size / cost.roofline.overlapped if cost else None,
    )
