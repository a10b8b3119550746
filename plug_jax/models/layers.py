"""Building blocks of encoder, decoder and heads: projections, norms, MLP, stacking.

Axis letters: B batch, Q row length, M model, F feed-forward.
Logical axis names of parameters: embed, mlp, heads, kv, vocab, position, layers (None: never
sharded); of activations: activation_batch, activation_length, activation_norm_length (the length
between the blocks' matmuls), activation_embed, activation_heads, activation_mlp, activation_vocab.
`plug_jax.partitioning` maps them to the mesh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from plug_jax.config import PlugConfig
from plug_jax.ops.dropout import dropout
from plug_jax.ops.gelu import gelu
from plug_jax.ops.linear import linear

ACTIVATION_EMBED = ("activation_batch", "activation_norm_length", "activation_embed")
_ACTIVATION_MLP = ("activation_batch", "activation_length", "activation_mlp")


def _partitioned(init: Any, axes: tuple[str | None, ...]) -> Any:
    # Empty rules, because flax would otherwise constrain DenseGeneral's kernels while they are
    # flattened, by axes that they do not have yet; shardings come from the state's layout.
    return nn.with_logical_partitioning(init, axes, rules=())


def partitioned_normal(std: float, axes: tuple[str | None, ...]) -> Any:
    """Normal initialiser whose parameter carries the logical `axes`."""
    return _partitioned(nn.initializers.normal(std), axes)


def partitioned_zeros(axes: tuple[str | None, ...]) -> Any:
    """Zeros initialiser whose parameter carries the logical `axes`."""
    return _partitioned(nn.initializers.zeros_init(), axes)


def projection(
    config: PlugConfig,
    features: int | Sequence[int],
    *,
    axes: tuple[str | None, ...],
    contract: int = 1,
    std: float | None = None,
) -> nn.DenseGeneral:
    """A linear layer over the last `contract` axes, with bias; `axes` name its kernel's axes."""
    return nn.DenseGeneral(
        features,
        axis=tuple(range(-contract, 0)),
        dtype=jnp.dtype(config.dtype),
        kernel_init=partitioned_normal(std or config.init_std, axes),
        bias_init=partitioned_zeros(axes[contract:]),
        dot_general=linear,
    )


def layer_norm(config: PlugConfig) -> nn.LayerNorm:
    """LayerNorm over M, in float32 with float32 output, whatever the compute dtype."""
    return nn.LayerNorm(
        epsilon=config.layer_norm_epsilon,
        dtype=jnp.float32,
        use_fast_variance=False,  # E[x^2] - E[x]^2 is too inexact for the parity tests
        scale_init=_partitioned(nn.initializers.ones_init(), ("embed",)),
        bias_init=partitioned_zeros(("embed",)),
    )


class Dropout(nn.Module):
    """Dropout with the random numbers of `rngs={"dropout": key}`."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        """[...,M] -> [...,M], as it is if `deterministic`."""
        if deterministic or self.rate == 0.0:
            return x
        return dropout(x, self.rate, self.make_rng("dropout"))


class Mlp(nn.Module):
    """W2 gelu(W1 x) with the exact (erf) GELU."""

    config: PlugConfig
    output_std: float | None = None

    def setup(self) -> None:
        """Declare the two projections."""
        c = self.config
        self.wi = projection(c, c.mlp_dim, axes=("embed", "mlp"))
        self.wo = projection(c, c.hidden_size, axes=("mlp", "embed"), std=self.output_std)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,Q,M] -> [B,Q,M]."""
        hidden = gelu(checkpoint_name(self.wi(x), "wi"))
        return self.wo(nn.with_logical_constraint(hidden, _ACTIVATION_MLP))


def residual(
    config: PlugConfig,
    x: jax.Array,
    branch: Any,
    *,
    norm: nn.LayerNorm,
    dropout: Dropout,
    deterministic: bool,
) -> jax.Array:
    """x + branch(norm(x)) (pre-norm) or norm(x + branch(x)) (post-norm), constrained."""
    inner = norm(x).astype(x.dtype) if config.norm_placement == "pre" else x
    x = x + dropout(branch(inner), deterministic=deterministic)
    if config.norm_placement == "post":
        x = norm(x).astype(x.dtype)
    return nn.with_logical_constraint(x, ACTIVATION_EMBED)


def stack(
    block: type[nn.Module],
    config: PlugConfig,
    *,
    num_layers: int,
) -> Any:
    """A constructor of `num_layers` consecutive blocks with parameters stacked on axis 0.

    `scan_layers` chooses between one compiled loop and unrolled code; the parameters are the same.
    The block takes (x, context, the static `deterministic`) and returns (x, None).
    """
    if config.remat_policy != "none":
        block = nn.remat(
            block,
            policy=_remat_policy(config),
            prevent_cse=not config.scan_layers,
            static_argnums=(3,),  # `deterministic`, counting self
        )
    return nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0},  # the latter for `module_numbers`
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, nn.broadcast),
        length=num_layers,
        unroll=1 if config.scan_layers else num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def _remat_policy(config: PlugConfig) -> Any:
    policies, names = jax.checkpoint_policies, config.remat_saved_names
    match config.remat_policy:
        case "full":
            return policies.nothing_saveable
        case "dots":
            return policies.dots_with_no_batch_dims_saveable
        case "names":
            return policies.save_only_these_names(*names)
        case "offload":
            return policies.save_and_offload_only_these_names(
                names_which_can_be_saved=(),
                names_which_can_be_offloaded=names,
                offload_src="device",
                offload_dst="pinned_host",
            )
    raise AssertionError(config.remat_policy)
