"""Cached decoding equals the whole-prefix decoder, at any pace, on one device or a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from plug_jax.checkpoints.parameters import abstract_params, init_params
from plug_jax.models.attention import CACHE_AXES
from plug_jax.models.decoder import split_layers
from plug_jax.models.plug import PlugModel, cache_shardings
from plug_jax.ops import kv_cache
from plug_jax.partitioning import Partitioner
from tests import synthetic
from tests.inference_model import CONFIG, jitted, lively_params

POST_NORM = dataclasses.replace(CONFIG, norm_placement="post", scan_layers=False)
PROMPT_LENGTHS = (3, 16, 9)
STEPS = 12


def prompts_and_texts(config):
    """(params, decoding params, prompts, segment ids, texts, whole-prefix logits)."""
    params = lively_params(config)
    rng = np.random.default_rng(0)
    segment_ids = (np.arange(16)[None] < np.array(PROMPT_LENGTHS)[:, None]).astype(np.int32)
    prompts = rng.integers(0, config.vocab_size, segment_ids.shape, np.int32) * segment_ids
    texts = rng.integers(0, config.vocab_size, (len(prompts), STEPS), np.int32)
    encoded = jitted(config, "encode")(params, prompts, segment_ids=segment_ids)
    expected = jitted(config, "decode")(params, texts, encoded, encoder_segment_ids=segment_ids)
    return split_layers(params), encoded, segment_ids, texts, expected


def step(config, params, tokens, cache, **active):
    return jitted(config, "decode_step", unstacked_layers=True)(params, tokens, cache, **active)


@pytest.mark.parametrize(
    ("config", "chunks", "cache_length"),
    [
        (CONFIG, [1] * STEPS, STEPS),
        (CONFIG, [STEPS], STEPS),
        (CONFIG, [4, 4, 1, 1, 1, 1], STEPS),
        (POST_NORM, [1] * STEPS, 30),
    ],
    ids=["steps", "prefill", "mixed", "post_norm"],
)
def test_cached_logits_equal_uncached_logits(config, chunks, cache_length):
    params, encoded, segment_ids, texts, expected = prompts_and_texts(config)
    init_cache = jitted(config, "init_cache", unstacked_layers=True, max_length=cache_length)
    cache = init_cache(params, encoded, encoder_segment_ids=segment_ids)
    found = []
    for chunk in np.split(texts, np.cumsum(chunks)[:-1], axis=1):
        logits, cache = step(config, params, chunk, cache)
        found.append(logits)
    assert [logits.shape[1] for logits in found] == chunks
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=0, atol=1e-5)


def test_rows_grow_each_at_its_own_pace():
    params, encoded, segment_ids, texts, expected = prompts_and_texts(CONFIG)
    init_cache = jitted(CONFIG, "init_cache", unstacked_layers=True, max_length=STEPS)
    cache = init_cache(params, encoded, encoder_segment_ids=segment_ids)
    rng, at = np.random.default_rng(1), np.zeros(3, int)
    while (at < STEPS).any():
        active = (at < STEPS) & rng.integers(0, 2, 3).astype(bool)
        tokens = texts[np.arange(3), np.minimum(at, STEPS - 1)][:, None]
        logits, cache = step(CONFIG, params, tokens, cache, active=active)
        for row in np.flatnonzero(active):
            np.testing.assert_allclose(logits[row, 0], expected[row, at[row]], rtol=0, atol=1e-5)
        at += active
        assert cache.lengths.tolist() == at.tolist()


def test_texts_of_one_prompt_share_its_keys_and_may_take_over_from_each_other():
    params, encoded, segment_ids, *_ = prompts_and_texts(CONFIG)
    twice = np.repeat(np.arange(3), 2)
    rows = np.random.default_rng(2).integers(0, CONFIG.vocab_size, (6, STEPS), np.int32)
    expected = jitted(CONFIG, "decode")(
        lively_params(CONFIG), rows, encoded[twice], encoder_segment_ids=segment_ids[twice]
    )
    options = {"unstacked_layers": True, "max_length": STEPS, "rows_per_prompt": 2}
    cache = jitted(CONFIG, "init_cache", **options)(
        params, encoded, encoder_segment_ids=segment_ids
    )
    assert cache.layers[0].cross_key.shape[0] == 3 and cache.layers[0].key.shape[0] == 6
    _, cache = step(CONFIG, params, rows[:, :5], cache)
    # The rows of a prompt trade places, or one is duplicated.
    parents = np.array([1, 0, 2, 2, 5, 5])
    cache = kv_cache.reorder(cache, jnp.asarray(parents))
    logits, _ = step(CONFIG, params, rows[parents, 5:], cache)
    np.testing.assert_allclose(logits, expected[parents, 5:], rtol=0, atol=1e-5)


BATCH, LENGTH = 8, 12


def test_sharded_cache_gives_the_logits_of_one_device() -> None:
    config = synthetic.tiny_config()
    params = init_params(PlugModel(config), jax.random.key(0))
    model = PlugModel(config, unstacked_layers=True)
    rng = np.random.default_rng(0)
    prompt, tokens = rng.integers(0, 90, (2, BATCH, LENGTH), np.int32)

    def decode(params, prompt, tokens):
        def apply(method, *args, **kwargs):
            return model.apply({"params": params}, *args, method=method, **kwargs)

        cache = apply("init_cache", apply("encode", prompt), max_length=LENGTH)
        logits, cache = apply("decode_step", tokens[:, :3], cache)
        more, cache = apply("decode_step", tokens[:, 3:], cache)
        return logits, more, cache

    alone = jax.jit(decode)(split_layers(params), prompt, tokens)
    partitioner = Partitioner(data=2, fsdp=2, tensor=2)
    with partitioner.context():
        shardings = partitioner.param_shardings(abstract_params(PlugModel(config)))
        placed = split_layers(jax.device_put(params, shardings))
        apart = partitioner.param_shardings(abstract_params(model))
        jax.tree.map(assert_lies, placed, apart)
        sharded = jax.jit(decode)(
            placed, *jax.device_put((prompt, tokens), partitioner.batch_sharding)
        )
    for one, other in zip(alone[:2], sharded[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    cache = sharded[2]
    for keys_or_values in jax.tree.leaves(cache.layers):
        assert_lies(keys_or_values, partitioner.sharding(*CACHE_AXES))
        # 8 rows over data x fsdp, 4 heads over tensor.
        assert keys_or_values.addressable_shards[0].data.shape == (2, 2, LENGTH, 4)
    assert partitioner.sharding("activation_batch").spec == PartitionSpec(("data", "fsdp"))
    jax.tree.map(assert_lies, cache.layers, cache_shardings(config, partitioner).layers)


def assert_lies(array, sharding):
    assert array.sharding.is_equivalent_to(sharding, array.ndim), (array.sharding, sharding)
