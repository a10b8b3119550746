"""A run's training, written with PyTorch's own layers, loss, clipping, optimizer and backward pass.

Independent of how ours is computed: from the same parameters and batches it must give the same
losses, and beside it ours is timed. Only PLUG's own recipe is here: pre-norm, AdamW. A model in
bfloat16 has its matmuls autocast. It trains on a CUDA GPU where PyTorch sees one, else on the CPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from plug_jax.errors import PlugError
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.techniques.techniques import NO_TECHNIQUES
from plug_jax.training.program import TrainConfig


class TorchTraining:
    """The model, its optimizer and the number of steps done."""

    def __init__(self, config: TrainConfig, params: Any) -> None:
        """`params`: ours, a tree of float32 arrays, which are copied.

        Raises: as `check`.
        """
        check(config)
        import torch

        self._torch, self._functional = torch, torch.nn.functional
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._config, self._model = config, config.model
        self._masked = next((o for o in config.objectives if isinstance(o, MaskedLM)), None)
        self._steps_done = 0
        # Each layer's own tensors: a gradient of one layer is then no larger than the layer.
        self._leaves: dict[str, list[Any]] = {}
        for path, leaf in flatten_dict(params).items():
            array = np.array(leaf, np.float32)
            parts = array if "layers" in path else [array]
            self._leaves["/".join(path)] = [
                torch.tensor(p, device=self._device, requires_grad=True) for p in parts
            ]
        c = config.optimizer
        decayed: list[Any] = []
        others: list[Any] = []
        for name, leaves in self._leaves.items():
            (decayed if name.endswith(("/kernel", "_embeddings")) else others).extend(leaves)
        groups = [
            {"params": decayed, "weight_decay": c.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=c.learning_rate, betas=(c.b1, c.b2), eps=c.epsilon, fused=True
        )
        warmup = max(1, round(c.warmup_fraction * config.steps))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda n: (
                (n + 1) / warmup if n < warmup else 1 - (n - warmup) / (config.steps - warmup)
            ),
        )

    def step(self, batch: Mapping[str, np.ndarray]) -> float:
        """Train on a batch, rows [B,S] of each feature; the loss before the update."""
        tensors = {name: self._torch.tensor(a, device=self._device) for name, a in batch.items()}
        with self._torch.autocast(
            self._device.type, self._torch.bfloat16, enabled=self._model.dtype == "bfloat16"
        ):
            loss = self._loss({name: tensor.long() for name, tensor in tensors.items()})
        self._optimizer.zero_grad()
        loss.backward()
        leaves = list(self._all_leaves())
        for leaf in leaves:  # Adam moves what has no gradient too, by its moments
            if leaf.grad is None:
                leaf.grad = self._torch.zeros_like(leaf)
        if self._config.optimizer.clip_norm:
            self._torch.nn.utils.clip_grad_norm_(leaves, self._config.optimizer.clip_norm)
        self._optimizer.step()
        self._schedule.step()
        self._steps_done += 1
        return float(loss.detach())

    def parameters(self) -> dict[str, np.ndarray]:
        """By the path in our tree, its names joined by "/"; layers are stacked on axis 0."""
        return {
            name: np.stack([leaf.detach().cpu().numpy() for leaf in leaves])
            if "/layers/" in name
            else leaves[0].detach().cpu().numpy()
            for name, leaves in self._leaves.items()
        }

    def _all_leaves(self) -> Iterator[Any]:
        for leaves in self._leaves.values():
            yield from leaves

    def _loss(self, batch: dict[str, Any]) -> Any:
        masked = self._masked is not None and (
            self._steps_done < self._masked.last_step(self._config.steps)
        )
        seen = batch["encoder_input_tokens" if masked else "encoder_original_tokens"]
        segments = batch["encoder_segment_ids"]
        hidden = self._embed(seen, batch["encoder_positions"], batch["encoder_token_types"])
        attentions = {"attention": (None, _readable(_same(segments, segments)))}
        for layer in range(self._model.num_encoder_layers):
            hidden = self._block("encoder", layer, hidden, attentions)
        hidden = self._norm("encoder/final_norm", hidden)
        loss = 0.0
        if masked:
            where = batch["encoder_loss_weights"] > 0
            states = self._linear("mlm_head/dense", hidden[where])
            states = self._norm("mlm_head/layer_norm", self._functional.gelu(states))
            logits = self._functional.linear(states, self._words, self._leaf("mlm_head/bias"))
            loss = loss + self._cross_entropy(logits, batch["encoder_original_tokens"][where])
        if "sentence_labels" in batch:
            where = batch["sentence_weights"] > 0
            logits = self._linear("sentence_head", hidden[where])
            loss = loss + self._cross_entropy(logits, batch["sentence_labels"][where])
        if "decoder_input_tokens" in batch:
            loss = loss + self._decoder_loss(batch, hidden)
        return loss

    def _decoder_loss(self, batch: dict[str, Any], encoded: Any) -> Any:
        tokens, segments = batch["decoder_input_tokens"], batch["decoder_segment_ids"]
        types = self._torch.zeros_like(tokens)
        hidden = self._embed(tokens, batch["decoder_positions"], types)
        length = tokens.shape[1]
        causal = self._torch.ones(length, length, device=self._device).tril().bool()
        attentions = {
            "self_attention": (None, _readable(_same(segments, segments) & causal)),
            "cross_attention": (encoded, _readable(_same(segments, batch["encoder_segment_ids"]))),
        }
        for layer in range(self._model.num_decoder_layers):
            hidden = self._block("decoder", layer, hidden, attentions)
        where = batch["decoder_loss_weights"] > 0
        states = self._norm("decoder/final_norm", hidden)[where]
        logits = self._functional.linear(states, self._words)
        return self._cross_entropy(logits, batch["decoder_target_tokens"][where])

    def _embed(self, tokens: Any, positions: Any, types: Any) -> Any:
        table = self._functional.embedding
        total = (
            table(tokens, self._words)
            + table(positions, self._leaf("embeddings/position_embeddings"))
            + table(types, self._leaf("embeddings/token_type_embeddings"))
        )
        return self._dropout(self._norm("embeddings/layer_norm", total))

    def _block(self, stack: str, layer: int, x: Any, attentions: dict[str, Any]) -> Any:
        """Pre-norm; `attentions`: name to (what keys are of, None for x; who sees whom)."""
        prefix = f"{stack}/layers"
        for name, (keys_of, allowed) in attentions.items():
            inner = self._norm(f"{prefix}/{name}_norm", x, layer)
            if keys_of is None:
                query, key, value = self._linear(f"{prefix}/{name}/qkv", inner, layer).unbind(2)
            else:
                query = self._linear(f"{prefix}/{name}/query", inner, layer)
                key, value = self._linear(f"{prefix}/{name}/key_value", keys_of, layer).unbind(2)
            mixed = self._functional.scaled_dot_product_attention(
                *(part.transpose(1, 2) for part in (query, key, value)),
                attn_mask=allowed,
                dropout_p=self._model.attention_dropout_rate,
            )
            out = self._linear(f"{prefix}/{name}/out", mixed.transpose(1, 2), layer, inputs=2)
            x = x + self._dropout(out)
        inner = self._norm(f"{prefix}/mlp_norm", x, layer)
        wide = self._functional.gelu(self._linear(f"{prefix}/mlp/wi", inner, layer))
        return x + self._dropout(self._linear(f"{prefix}/mlp/wo", wide, layer))

    @property
    def _words(self) -> Any:
        return self._leaf("embeddings/word_embeddings")

    def _dropout(self, x: Any) -> Any:
        return self._functional.dropout(x, self._model.dropout_rate)

    def _cross_entropy(self, logits: Any, labels: Any) -> Any:
        """The mean, in nats; 0 where there is nothing to predict."""
        total = self._functional.cross_entropy(logits, labels, reduction="sum")
        return total / max(1, len(labels))

    def _norm(self, name: str, x: Any, layer: int = 0) -> Any:
        scale, bias = (self._leaf(f"{name}/{part}", layer) for part in ("scale", "bias"))
        return self._functional.layer_norm(
            x, x.shape[-1:], scale, bias, self._model.layer_norm_epsilon
        )

    def _linear(self, name: str, x: Any, layer: int = 0, inputs: int = 1) -> Any:
        """Over the last `inputs` axes of x."""
        kernel, bias = (self._leaf(f"{name}/{part}", layer) for part in ("kernel", "bias"))
        matrix = kernel.flatten(0, inputs - 1).flatten(1)
        y = self._functional.linear(x.flatten(x.ndim - inputs), matrix.T, bias.flatten())
        return y.unflatten(-1, bias.shape)

    def _leaf(self, name: str, layer: int = 0) -> Any:
        return self._leaves[name][layer]


def _same(queries: Any, keys: Any) -> Any:
    """Bool [B,Q,S]: of one segment, which is not padding."""
    return (queries[:, :, None] == keys[:, None, :]) & (queries[:, :, None] > 0)


def _readable(allowed: Any) -> Any:
    """Bool [B,1,Q,S]; padding sees the first key, for else it would be NaN: it is never read."""
    allowed[..., 0] |= ~allowed.any(-1)
    return allowed[:, None]


def check(config: TrainConfig) -> None:
    """PlugError where PyTorch is not installed, or what is here is not the run's training."""
    if importlib.util.find_spec("torch") is None:
        raise PlugError("training in PyTorch needs PyTorch: pip install 'plug-jax[convert]'")
    model, optimizer = config.model, config.optimizer
    stage = {"tokens", "sentence"}, {"tokens", "decoder"}
    wrong = {
        "the objectives of stage 1 or 2": {o.name for o in config.objectives} not in stage,
        "norm_placement 'pre'": model.norm_placement != "pre",
        "no pooler": model.use_pooler,
        "one final norm": model.encoder_final_norm_repeats != 1,
        "one micro-batch": config.step.micro_batches != 1,
        "AdamW with a linear schedule": (optimizer.name, optimizer.schedule) != ("adamw", "linear"),
        "float32 moments": optimizer.moment_dtype != "float32",
        "one learning rate": bool(
            optimizer.layer_decay != 1 or optimizer.learning_rate_multipliers or optimizer.freeze
        ),
        "no techniques": config.techniques != NO_TECHNIQUES,
    }
    if missing := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise PlugError(
            f"this cannot be trained in PyTorch, as it is not a run with: {', '.join(missing)}"
        )
