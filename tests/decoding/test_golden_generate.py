"""Greedy long texts against the released PyTorch code: encoded once, or again every 8 tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.decoding.rolling import RollingScheme, rewrite, roll
from plug_jax.inference.model import InferenceModel
from plug_jax.inference.options import prompt_rngs, sampling_of
from plug_jax.inference.request_options import GenerationOptions
from tests import golden_weights
from tests.inference_model import jitted

CLS, SEP = 101, 102


class Ids:
    """The golden model's vocabulary: ids without pieces."""

    pad_id, unk_id, cls_id, sep_id, mask_id = 0, 100, CLS, SEP, 103
    special_ids = (0, 100, 101, 102, 103)
    vocab_size = 512


@pytest.mark.parity
@pytest.mark.parametrize(("name", "chunk"), [("generate", 128), ("generate_chunk8", 8)])
def test_ids_and_step_logits(golden_dir, name, chunk):
    directory = golden_dir / "plug_tiny"
    config, params = golden_weights.load_plug_tiny(directory, "full", final_norm_repeats=2)
    with np.load(directory / f"{name}.npz") as file:
        golden = dict(file)
    assert int(golden["segment_length"]) == chunk
    expected = golden["generated_ids"]  # [2, 20]
    rows, asked = expected.shape
    prompts = [
        ids[:length].tolist()
        for ids, length in zip(golden["prompt_ids"], golden["prompt_lengths"], strict=True)
    ]
    chunk = min(chunk, config.max_positions - 1)  # 128, longer than the 20 tokens requested
    context_length = golden["prompt_ids"].shape[1]
    scheme = RollingScheme(
        cls_id=CLS,
        sep_id=SEP,
        unk_id=Ids.unk_id,
        vocab_size=Ids.vocab_size,
        chunk=chunk,
        context_length=context_length,
    )
    model = InferenceModel(config, params, Ids())
    sampling = sampling_of([GenerationOptions(temperature=0)] * rows, prompt_rngs(0, rows))
    contexts = []

    def write(now, written, draws, active):
        contexts.append([list(c) for c in now])
        found = model.write_chunk(
            now,
            sampling,
            scheme,
            written=written,
            asked=[asked] * rows,
            draws=draws,
            active=active,
            candidates=1,
        )
        return np.asarray(found.tokens), np.asarray(found.lengths), np.asarray(found.ended)

    found = roll(write, prompts, scheme, lengths=[asked] * rows)
    np.testing.assert_array_equal(found, expected)

    # The logits of every step, given the golden contexts.
    for number, now in enumerate(contexts):
        part = slice(number * chunk, min((number + 1) * chunk, asked))
        read = np.concatenate([np.full((rows, 1), CLS), expected[:, part][:, :-1]], axis=1)
        tokens, segment_ids = model.batch(now, context_length)
        encoded = jitted(config, "encode")(params, tokens, segment_ids=segment_ids)
        logits = jitted(config, "decode")(
            params, jnp.asarray(read, jnp.int32), encoded, encoder_segment_ids=segment_ids
        )
        np.testing.assert_allclose(
            logits[..., : config.vocab_size], golden["step_logits"][:, part], rtol=0, atol=1e-4
        )
        if number:
            assert now == [
                rewrite(before, text[(number - 1) * chunk : number * chunk].tolist(), scheme)
                for before, text in zip(contexts[number - 1], expected, strict=True)
            ]
