"""Small random batches and models shared by the tests."""

from __future__ import annotations

import numpy as np

from plug_jax.config import PlugConfig

CLS, SEP, MASK, FIRST_REGULAR = 2, 3, 4, 5


def tiny_config(**changes: object) -> PlugConfig:
    """A model that compiles in a second or two."""
    values: dict[str, object] = {
        "vocab_size": 90,
        "vocab_multiple": 16,
        "hidden_size": 16,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "head_dim": 4,
        "mlp_dim": 32,
        "max_positions": 32,
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "init_std": 0.1,
    }
    return PlugConfig(**(values | changes))  # type: ignore[arg-type]


def plug_27b(**changes: object) -> PlugConfig:
    """The released model, as models/plug_27b.gin has it."""
    values: dict[str, object] = {
        "vocab_size": 21128,
        "vocab_multiple": 1024,
        "hidden_size": 8192,
        "num_encoder_layers": 24,
        "num_decoder_layers": 6,
        "num_heads": 128,
        "head_dim": 64,
        "mlp_dim": 32768,
        "max_positions": 2048,
    }
    return PlugConfig(**(values | changes))  # type: ignore[arg-type]


def pack_lengths(rng: np.random.Generator, length: int) -> list[int]:
    """Lengths of examples packed into a row with some padding."""
    lengths: list[int] = []
    while length - sum(lengths) > 8:
        lengths.append(int(rng.integers(4, min(12, length - sum(lengths)))))
    return lengths


def batch(
    *, rows: int = 8, encoder: int = 24, decoder: int | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """A packed batch of stage 1, or with `decoder` of stage 2, with random text and masks."""
    rng = np.random.default_rng(seed)
    shape = (rows, encoder)
    out = {
        name: np.zeros(shape, np.int32)
        for name in (
            "encoder_original_tokens",
            "encoder_positions",
            "encoder_segment_ids",
            "encoder_token_types",
        )
    }
    decoder_out: dict[str, np.ndarray] = {}
    if decoder is not None:
        for name in ("input_tokens", "target_tokens", "loss_weights", "positions", "segment_ids"):
            decoder_out[f"decoder_{name}"] = np.zeros((rows, decoder), np.int32)
    sentence_labels, sentence_weights = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row in range(rows):
        lengths = pack_lengths(rng, encoder)
        start = decoder_start = 0
        for segment, n in enumerate(lengths, start=1):
            at = (row, slice(start, start + n))
            text = rng.integers(FIRST_REGULAR, 90, n)
            text[0], text[-1] = CLS, SEP
            out["encoder_original_tokens"][at] = text
            out["encoder_positions"][at] = np.arange(n)
            out["encoder_segment_ids"][at] = segment
            out["encoder_token_types"][at] = np.arange(n) > n // 2
            sentence_labels[row, start] = rng.integers(3)
            sentence_weights[row, start] = 1
            start += n
            if decoder is not None:
                m = int(rng.integers(3, max(4, (decoder - decoder_start) // 2)))
                if decoder_start + m > decoder:
                    continue
                at = (row, slice(decoder_start, decoder_start + m))
                text = rng.integers(FIRST_REGULAR, 90, m)
                decoder_out["decoder_target_tokens"][at] = [*text[:-1], SEP]
                decoder_out["decoder_input_tokens"][at] = [CLS, *text[:-1]]
                decoder_out["decoder_loss_weights"][at] = 1
                decoder_out["decoder_positions"][at] = np.arange(m)
                decoder_out["decoder_segment_ids"][at] = segment
                decoder_start += m
    original = out["encoder_original_tokens"]
    regular = original >= FIRST_REGULAR
    masked = regular & (rng.random(shape) < 0.15)
    out["encoder_input_tokens"] = np.where(masked, MASK, original).astype(np.int32)
    out["encoder_loss_weights"] = masked.astype(np.int32)
    if decoder is None:
        shuffled = regular & ~masked & (rng.random(shape) < 0.1)
        out["encoder_shuffled"] = shuffled.astype(np.int32)
        out["encoder_loss_weights"] = (masked | shuffled).astype(np.int32)
        out["sentence_labels"], out["sentence_weights"] = sentence_labels, sentence_weights
    return out | decoder_out
