"""Locating the first non-finite values of a step."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from plug_jax.cli.debug_nans import show_numbers
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.partitioning import put_batch
from plug_jax.training.module_numbers import numbers_of_step
from plug_jax.training.step import StepConfig
from tests import synthetic
from tests.training.program_runs import MESH, program_of, run_config, start
from tests.training.test_safety import Poisoned, batch


def test_by_module_parameter_loss_and_row() -> None:
    """A layer's weight, then one row of the positions, which two rows of a micro-batch use."""
    config = run_config(
        model=synthetic.tiny_config(num_decoder_layers=0, remat_policy="full"),
        objectives=(MaskedLM(),),
        step=StepConfig(micro_batches=2),
        partitioner=MESH,
    )
    with program_of(config) as program:
        state = start(config, program)
        one = batch(0)
        one["encoder_positions"] = np.minimum(one["encoder_positions"], 5)
        one["encoder_positions"][[3, 5], 2] = 7
        on_device = put_batch(one, config.partitioner.batch_sharding)
        good = numbers_of_step(config, program, state, on_device)
        assert good.first is None and good.rows == []
        names = [numbers.where for numbers in good.forward]
        assert names.index("encoder/layers:0/mlp/wi") < names.index("encoder/layers:0/mlp")
        assert names.index("embeddings") < names.index("encoder/layers:0/mlp")
        assert names.index("encoder/layers:0/mlp_norm") < names.index("encoder/layers:1/mlp/wi")
        assert names.index("encoder/layers:1") < names.index("mlm_head/dense")

        kernel = state.params["encoder"]["layers"]["mlp"]["wi"]["kernel"]
        state.params["encoder"]["layers"]["mlp"]["wi"]["kernel"] = kernel.at[1, 2, 3].set(jnp.inf)
        bad = numbers_of_step(config, program, state, on_device)
        assert bad.first == "the parameter encoder/layers:1/mlp/wi/kernel"
        assert next(n.where for n in bad.forward if n.not_finite) == "encoder/layers:1/mlp/wi"
        [found] = [n for n in bad.parameters if n.not_finite]
        assert (found.size, found.not_finite) == (16 * 32, 1)
        state.params["encoder"]["layers"]["mlp"]["wi"]["kernel"] = kernel

        table = state.params["embeddings"]["position_embeddings"]
        state.params["embeddings"]["position_embeddings"] = table.at[7].set(jnp.nan)
        bad = numbers_of_step(config, program, state, on_device)
        assert bad.rows == [3, 5]
        assert next(n.where for n in bad.forward if n.not_finite) == "embeddings/layer_norm"


def test_a_loss_that_is_not_finite_is_named() -> None:
    config = run_config(objectives=(Poisoned(),))
    with program_of(config) as program:
        state = start(config, program)
        one = put_batch(batch(0, poisoned=True), config.partitioner.batch_sharding)
        bad = numbers_of_step(config, program, state, one)
        assert bad.first == "the loss: loss, tokens_loss"
        assert not any(n.not_finite for n in bad.forward)
        assert np.isfinite(bad.losses["mlm_loss"])
        assert all(n.not_finite for n in bad.gradients if n.where.startswith("mlm_head"))
        assert any(
            isinstance(p, str) and p.endswith("the loss: loss, tokens_loss")
            for p in show_numbers(bad)
        )
