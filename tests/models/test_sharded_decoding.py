"""Cached decoding on a mesh: the cache lies where its keys and values are made."""

import jax
import numpy as np
from jax.sharding import PartitionSpec

from plug_jax.models.plug import CACHE_AXES, PlugModel
from plug_jax.partitioning import Partitioner
from plug_jax.training.state import abstract_params, init_params
from tests import synthetic

BATCH, LENGTH = 8, 12


def test_sharded_cache_gives_the_logits_of_one_device() -> None:
    model = PlugModel(synthetic.tiny_config())
    params = init_params(model, jax.random.key(0))
    rng = np.random.default_rng(0)
    prompt, tokens = rng.integers(0, 90, (2, BATCH, LENGTH), np.int32)

    def decode(params, prompt, tokens):
        def apply(method, *args, **kwargs):
            return model.apply({"params": params}, *args, method=method, **kwargs)

        cache = apply("start_cache", apply("encode", prompt), max_length=LENGTH)
        logits, cache = apply("decode_step", tokens[:, :3], cache)
        more, cache = apply("decode_step", tokens[:, 3:], cache)
        return logits, more, cache

    alone = jax.jit(decode)(params, prompt, tokens)
    partitioner = Partitioner(data=2, fsdp=2, tensor=2)
    with partitioner.context():
        shardings = partitioner.param_shardings(abstract_params(model))
        sharded = jax.jit(decode)(
            jax.device_put(params, shardings),
            *jax.device_put((prompt, tokens), partitioner.batch_sharding),
        )
    for one, other in zip(alone[:2], sharded[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    cache = sharded[2]
    for keys_and_values in (cache.self_key_value, cache.cross_key_value):
        wanted = partitioner.sharding(*CACHE_AXES)
        assert keys_and_values.sharding.is_equivalent_to(wanted, keys_and_values.ndim)
        # 8 rows over data x fsdp, 4 heads over tensor.
        assert keys_and_values.addressable_shards[0].data.shape == (2, 2, 2, LENGTH, 2, 4)
    assert partitioner.sharding("activation_batch").spec == PartitionSpec(("data", "fsdp"))
