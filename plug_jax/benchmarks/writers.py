"""Ways to write a batch of texts, for `plug-jax bench decode` and `bench int8` to time.

Axis letters: B rows.
"""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plug_jax.cpu_cores import cores
from plug_jax.inference.generator import generate
from plug_jax.inference.model import InferenceModel
from plug_jax.inference.options import not_text
from plug_jax.inference.programs import apply
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.models.plug import PlugModel

_PROMPT = (  # of 62 characters
    "新华社北京一月一日电在新的一年到来之际全国各族人民满怀信心地迎接"
    "改革开放和现代化建设的新任务为实现宏伟目标而努力奋斗各地群众"
)
_UNCACHED_TOKENS = 4  # every token costs the same there, so a few are enough


class Way(abc.ABC):
    """One way to write texts."""

    name: str
    tokens: int  # of a pass

    @abc.abstractmethod
    def write(self) -> np.ndarray:
        """Writes the texts of a pass, int32 [B, written]."""


class Cached(Way):
    """What `plug-jax generate` does, tokenization included."""

    def __init__(
        self,
        model: InferenceModel,
        batch: int,
        new_tokens: int,
        top_k: int | None,
        *,
        name: str = "cached",
    ) -> None:
        self.name = name
        self.tokens = batch * new_tokens
        self._model, self._prompts = model, [_PROMPT] * batch
        self._options = GenerationOptions(
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            temperature=0.0 if top_k is None else 1.0,
            top_k=top_k or 0,
        )

    def write(self) -> np.ndarray:
        """Writes the texts of a pass, int32 [B, written]."""
        texts = generate(self._model, self._prompts, self._options)
        return np.asarray([text.ids for (text,) in texts], np.int32)


class Uncached(Way):
    """The decoder runs over the whole room for every token, in one compiled loop.

    The prompt is encoded once, and logits are made of the last token's state alone.
    """

    name = "uncached"

    def __init__(self, model: InferenceModel, batch: int, new_tokens: int) -> None:
        written = min(_UNCACHED_TOKENS, new_tokens)
        self.tokens = batch * written
        self._params = model.params
        tokens, segment_ids = model.batch([model.prompt_ids(_PROMPT)] * batch)
        plug = PlugModel(model.config, unstacked_layers=True)
        forbidden = not_text(model.config, model.vocabulary)
        forbidden[model.vocabulary.sep_id] = True  # no text ends early
        self._encoded = jax.jit(
            lambda params: apply(plug, params, "encode", tokens, segment_ids=segment_ids)
        )(model.params)

        def write(params: Any, encoded: jax.Array) -> jax.Array:
            def write_one(step: jax.Array, texts: jax.Array) -> jax.Array:
                read = texts[:, :-1]
                states = apply(
                    plug, params, "decoder_states", read, encoded, encoder_segment_ids=segment_ids
                )
                last = jax.lax.dynamic_slice_in_dim(states, step, 1, axis=1)
                logits = apply(plug, params, _logits, last)[:, 0]
                chosen = jnp.argmax(jnp.where(forbidden, -jnp.inf, logits), axis=-1)
                return jax.lax.dynamic_update_slice_in_dim(
                    texts, chosen[:, None].astype(jnp.int32), step + 1, axis=1
                )

            texts = jnp.full((batch, new_tokens + 1), model.vocabulary.cls_id, jnp.int32)
            return jax.lax.fori_loop(0, written, write_one, texts)[:, 1 : written + 1]

        self._write = jax.jit(write)

    def write(self) -> np.ndarray:
        """Writes the texts of a pass, int32 [B, written]."""
        return np.asarray(self._write(self._params, self._encoded))


def _logits(plug: PlugModel, states: jax.Array) -> jax.Array:
    return plug.embeddings.attend(states)


class HuggingFace(Way):
    """transformers' `generate` with its cache on a BART of the same size, without tokenization."""

    name = "hugging_face"

    def __init__(
        self, model: InferenceModel, batch: int, new_tokens: int, top_k: int | None
    ) -> None:
        import torch
        from transformers import BartConfig, BartForConditionalGeneration

        c = model.config
        torch.set_num_threads(cores())
        torch.manual_seed(0)
        bart = BartConfig(
            vocab_size=c.vocab_size,
            d_model=c.hidden_size,
            encoder_layers=c.num_encoder_layers,
            decoder_layers=c.num_decoder_layers,
            encoder_attention_heads=c.num_heads,
            decoder_attention_heads=c.num_heads,
            encoder_ffn_dim=c.mlp_dim,
            decoder_ffn_dim=c.mlp_dim,
            max_position_embeddings=c.max_positions,
            forced_eos_token_id=None,
        )
        self.tokens = batch * new_tokens
        self._torch, self._model = torch, BartForConditionalGeneration(bart).eval()
        self._prompts = torch.tensor([model.prompt_ids(_PROMPT)] * batch)
        sampling = {} if top_k is None else {"top_k": top_k, "temperature": 1.0}
        self._options = {
            "max_new_tokens": new_tokens,
            "min_new_tokens": new_tokens,
            "num_beams": 1,
            "use_cache": True,
            "do_sample": top_k is not None,
            **sampling,
        }

    def write(self) -> np.ndarray:
        """Writes the texts of a pass, int32 [B, written]."""
        with self._torch.inference_mode():
            texts = self._model.generate(self._prompts, **self._options)
        written: np.ndarray = texts[:, 1:].numpy()  # without the start token
        assert written.size == self.tokens
        return written
