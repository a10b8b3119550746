"""Compares the outputs of a converted model with the original's."""

from __future__ import annotations

import dataclasses
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plug_jax.checkpoints.parameters import abstract_params
from plug_jax.checkpoints.saved_model import SavedModel, open_checkpoint
from plug_jax.config import PlugConfig
from plug_jax.convert.whole_files import first_bytes
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner

_ENCODER_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
_INPUTS = (*_ENCODER_INPUTS, "decoder_input_ids")
OUTPUTS = ("encoder_hidden", "mlm_logits", "sentence_logits", "decoder_logits")
_OTHER_NAMES = {"last_hidden_state": "encoder_hidden", "seq_relationship_logits": "sentence_logits"}
# The last two are for arrays declared larger than any memory.
_DAMAGED = (zipfile.BadZipFile, zlib.error, MemoryError, OverflowError)
_OVER_PIECES = ("mlm_logits", "decoder_logits")  # ours have columns of padding
_BY_POSITION = ("encoder_hidden", "mlm_logits")  # meaningless where attention_mask is 0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The largest absolute difference of each output; None: the file does not have it."""

    differences: Mapping[str, float | None]
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether all compared outputs are within the tolerance (NaN is not)."""
        found = [d for d in self.differences.values() if d is not None]
        return all(d <= self.tolerance for d in found)


def verify(
    checkpoint: str | os.PathLike[str], golden: str | os.PathLike[str], *, tolerance: float
) -> Comparison:
    """Run a checkpoint in float32 on the inputs in an .npz file and compare with its outputs.

    The file contains integers input_ids, token_type_ids and attention_mask [B,E] and, for
    decoder_logits, decoder_input_ids [B,D]; and some or all of the float arrays encoder_hidden
    [B,E,M], mlm_logits [B,E,V], sentence_logits [B,C] and decoder_logits [B,D,V]. Hugging Face's
    last_hidden_state and seq_relationship_logits are synonyms for the first and third;
    pooled_output [B,M] is compared too. Padding is not compared.

    Raises:
        PlugError: no such file, a missing or unknown key, nothing to compare, ids or
            lengths that the model does not have, or outputs of other shapes.
    """
    saved = open_checkpoint(checkpoint)
    inputs, expected = _read(golden)
    _check_arrays(saved.config, inputs, expected)
    outputs = _run(saved, inputs)
    visible = inputs["attention_mask"] == 1
    differences: dict[str, float | None] = dict.fromkeys(OUTPUTS)
    for name, array in expected.items():
        found = np.asarray(outputs[name])
        if name in _OVER_PIECES:
            found = found[..., : array.shape[-1]]
        if found.shape != array.shape:
            raise PlugError(f"{golden}: {name} is {array.shape}; this model gives {found.shape}")
        difference = np.abs(found - array.astype(np.float32))
        if name in _BY_POSITION:
            difference = difference[visible]
        differences[name] = float(difference.max())
    return Comparison(differences, tolerance)


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and outputs, under our names."""
    first_bytes(Path(path))
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {_OTHER_NAMES.get(name, name): file[name] for name in file}
    except (OSError, EOFError, KeyError, TypeError, ValueError, *_DAMAGED) as error:
        raise PlugError(f"cannot read {path} as an .npz file: {error}") from error
    inputs = {name: arrays.pop(name) for name in _INPUTS if name in arrays}
    known = {*OUTPUTS, "pooled_output"}
    if unknown := sorted(arrays.keys() - known):
        raise PlugError(f"{path} holds {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    if not arrays:
        raise PlugError(f"{path} holds no output to compare: none of {', '.join(sorted(known))}")
    needed = _INPUTS if "decoder_logits" in arrays else _ENCODER_INPUTS
    if missing := [name for name in needed if name not in inputs]:
        raise PlugError(f"{path} lacks {', '.join(missing)}")
    return inputs, arrays


def _check_arrays(
    config: PlugConfig, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> None:
    if "decoder_logits" in expected and not config.num_decoder_layers:
        raise PlugError("the file has decoder_logits, and this model has no decoder")
    if "pooled_output" in expected and not config.use_pooler:
        raise PlugError("the file has pooled_output, and this model does not use its pooler")
    limits = {
        "input_ids": config.padded_vocab_size,
        "decoder_input_ids": config.padded_vocab_size,
        "token_type_ids": config.num_token_types,
        "attention_mask": 2,
    }
    for name, array in inputs.items():
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or not array.size:
            raise PlugError(
                f"{name} is {array.dtype} {array.shape}; should be integers [B, length]"
            )
        if array.shape[1] > config.max_positions:
            raise PlugError(
                f"{name} is {array.shape[1]} long; this model has {config.max_positions} positions"
            )
        if array.min() < 0 or array.max() >= limits[name]:
            raise PlugError(f"{name} holds {array.max()}; this model takes 0 to {limits[name] - 1}")
        same = inputs["input_ids"].shape if name in _ENCODER_INPUTS else array.shape
        if array.shape != same or array.shape[0] != inputs["input_ids"].shape[0]:
            raise PlugError(f"{name} is {array.shape}, and input_ids {inputs['input_ids'].shape}")
    if not inputs["attention_mask"].any():
        raise PlugError("attention_mask is 0 everywhere: there is nothing to compare but padding")
    for name, array in expected.items():
        if not np.issubdtype(array.dtype, np.floating) or array.ndim < 2 or not array.size:
            raise PlugError(
                f"{name} is {array.dtype} {array.shape}; should be floats, with an axis for texts"
            )


def _run(saved: SavedModel, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """All outputs that the inputs allow, with parameters sharded over all devices."""
    config = dataclasses.replace(saved.config, dtype="float32")
    model = PlugModel(config)
    devices = jax.devices()[: math.gcd(config.hidden_size, jax.device_count())]
    partitioner = Partitioner(data=1, fsdp=len(devices), devices=tuple(devices))
    params = saved.params(partitioner.param_shardings(abstract_params(model)), "float32")

    @jax.jit
    def run(params: Any, inputs: Mapping[str, jax.Array]) -> dict[str, Any]:
        def apply(method: str, *args: Any, **kwargs: Any) -> Any:
            return model.apply({"params": params}, *args, method=method, **kwargs)

        segments = inputs["attention_mask"]
        hidden = apply(
            "encode",
            inputs["input_ids"],
            token_types=inputs["token_type_ids"],
            segment_ids=segments,
        )
        outputs = {
            "encoder_hidden": hidden,
            "pooled_output": apply("pool", hidden[:, 0]),
            "mlm_logits": apply("mlm_logits", hidden),
            "sentence_logits": apply("sentence_logits", hidden[:, 0]),
        }
        if config.num_decoder_layers and "decoder_input_ids" in inputs:
            outputs["decoder_logits"] = apply(
                "decode", inputs["decoder_input_ids"], hidden, encoder_segment_ids=segments
            )
        return outputs

    with jax.default_matmul_precision("highest"):  # a TPU's default for float32 is bfloat16
        return run(params, {n: jnp.asarray(a, jnp.int32) for n, a in inputs.items()})
