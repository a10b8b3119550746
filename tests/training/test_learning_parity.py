"""Sixty steps of both stages beside the same training in PyTorch: losses, and where they lead.

The model is written here with PyTorch's own layers, loss, clipping, optimizer and backward pass.
Both train on the same batches from the same parameters; only the batches come from our code.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from plug_jax.cli.train import configure
from plug_jax.data.pipeline import make_iterator
from plug_jax.training.program import TrainConfig
from tests.training import program_runs
from tests.training.test_golden_losses import BINDINGS, RUNS, write_corpus

pytestmark = pytest.mark.parity

STEPS, WARMUP, LAST_MASKED = 60, 6, 54
PEAK, WEIGHT_DECAY = 2e-3, 0.01


def configured(stage: str, root: Path, *, pack: bool) -> TrainConfig:
    write_corpus(root)
    lengths = {"encoder": 64} if stage == "stage1" else {"encoder": 64, "decoder": 64}
    task = "structbert_text" if stage == "stage1" else "palm_text"
    changed = {
        "MICRO_BATCHES": 1,
        "DROPOUT_RATE": 0.0,
        "TRAIN_STEPS": STEPS,
        "LEARNING_RATE": PEAK,
        "EVAL_DATA": None,
        "MODEL_DIR": str(root / "run"),
        "TRAIN_FILES": str(root / "text.txt"),
        "VOCABULARY": str(root / "vocab.txt"),
        "TASK_FEATURE_LENGTHS": lengths,
        f"pretrain.{task}.max_length": 40,
        "train/pipeline.DatasetConfig.pack": pack,
        "optimizer.OptimizerConfig.warmup_fraction": WARMUP / STEPS,
        "optimizer.OptimizerConfig.weight_decay": WEIGHT_DECAY,
        "optimizer.OptimizerConfig.clip_norm": 1.0,
    }
    if stage == "stage2":
        changed["pretrain.palm_text.min_length"] = 6
    kept = [b for b in BINDINGS if b.split(" = ")[0] not in changed]
    if stage == "stage1":
        kept = [b for b in kept if not b.startswith("DECODER_LAYERS")]
    bindings = [*kept, *(f"{name} = {value!r}" for name, value in changed.items())]
    files = [f"runs/{RUNS[stage]}_pretrain.gin", "models/tiny.gin", "mesh/cpu1.gin"]
    return dataclasses.replace(configure(files, bindings), partitioner=program_runs.ONE_DEVICE)


class InPyTorch:
    """The same training, step by step."""

    def __init__(self, config: TrainConfig, params: Any) -> None:
        import torch

        self.torch, self.functional = torch, torch.nn.functional
        self.model = config.model
        self.leaves = {
            "/".join(path): torch.tensor(np.asarray(leaf), requires_grad=True)
            for path, leaf in flatten_dict(params).items()
        }
        decays = [
            leaf
            for name, leaf in self.leaves.items()
            if name.endswith("/kernel") or name.endswith("_embeddings")
        ]
        ids = {id(leaf) for leaf in decays}
        others = [leaf for leaf in self.leaves.values() if id(leaf) not in ids]
        groups = [
            {"params": decays, "weight_decay": WEIGHT_DECAY},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.999), eps=1e-8)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda n: (n + 1) / WARMUP if n < WARMUP else 1 - (n - WARMUP) / (STEPS - WARMUP),
        )

    def step(self, batch: dict[str, np.ndarray], number: int) -> float:
        """The loss before the update."""
        tensors = {name: self.torch.tensor(array).long() for name, array in batch.items()}
        loss = self._loss(tensors, number)
        self.optimizer.zero_grad()
        loss.backward()
        for leaf in self.leaves.values():  # Adam moves what has no gradient too, by its moments
            if leaf.grad is None:
                leaf.grad = self.torch.zeros_like(leaf)
        self.torch.nn.utils.clip_grad_norm_(list(self.leaves.values()), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def _loss(self, batch: dict[str, Any], number: int) -> Any:
        masked = "decoder_input_tokens" not in batch or number < LAST_MASKED
        seen = batch["encoder_input_tokens" if masked else "encoder_original_tokens"]
        segments = batch["encoder_segment_ids"]
        hidden = self._embed(seen, batch["encoder_positions"], batch["encoder_token_types"])
        allowed = _same(segments, segments)
        for i in range(self.model.num_encoder_layers):
            hidden = self._block("encoder", i, hidden, {"attention": (None, allowed)})
        hidden = self._norm("encoder/final_norm", hidden)
        loss = 0.0
        if masked:
            where = batch["encoder_loss_weights"] > 0
            states = self._linear("mlm_head/dense", hidden[where])
            states = self._norm("mlm_head/layer_norm", self.functional.gelu(states))
            logits = states @ self._words.T + self.leaves["mlm_head/bias"]
            labels = batch["encoder_original_tokens"][where]
            loss = loss + self.functional.cross_entropy(logits, labels)
        if "sentence_labels" in batch:
            where = batch["sentence_weights"] > 0
            logits = self._linear("sentence_head", hidden[where])
            loss = loss + self.functional.cross_entropy(logits, batch["sentence_labels"][where])
        if "decoder_input_tokens" in batch:
            loss = loss + self._decoder_loss(batch, hidden)
        return loss

    def _decoder_loss(self, batch: dict[str, Any], encoded: Any) -> Any:
        tokens, segments = batch["decoder_input_tokens"], batch["decoder_segment_ids"]
        types = self.torch.zeros_like(tokens)
        hidden = self._embed(tokens, batch["decoder_positions"], types)
        length = tokens.shape[1]
        causal = _same(segments, segments) & self.torch.ones(length, length).tril().bool()
        attentions = {
            "self_attention": (None, causal),
            "cross_attention": (encoded, _same(segments, batch["encoder_segment_ids"])),
        }
        for i in range(self.model.num_decoder_layers):
            hidden = self._block("decoder", i, hidden, attentions)
        where = batch["decoder_loss_weights"] > 0
        logits = self._norm("decoder/final_norm", hidden)[where] @ self._words.T
        return self.functional.cross_entropy(logits, batch["decoder_target_tokens"][where])

    def _embed(self, tokens: Any, positions: Any, types: Any) -> Any:
        table = self.functional.embedding
        total = (
            table(tokens, self._words)
            + table(positions, self.leaves["embeddings/position_embeddings"])
            + table(types, self.leaves["embeddings/token_type_embeddings"])
        )
        return self._norm("embeddings/layer_norm", total)

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
            # Padding may see the first key: what it computes is never read.
            allowed = allowed.clone()
            allowed[..., 0] |= ~allowed.any(-1)
            mixed = self.functional.scaled_dot_product_attention(
                *(part.transpose(1, 2) for part in (query, key, value)), attn_mask=allowed[:, None]
            )
            x = x + self._linear(f"{prefix}/{name}/out", mixed.transpose(1, 2), layer, inputs=2)
        inner = self._norm(f"{prefix}/mlp_norm", x, layer)
        wide = self.functional.gelu(self._linear(f"{prefix}/mlp/wi", inner, layer))
        return x + self._linear(f"{prefix}/mlp/wo", wide, layer)

    @property
    def _words(self) -> Any:
        return self.leaves["embeddings/word_embeddings"]

    def _norm(self, name: str, x: Any, layer: int | None = None) -> Any:
        scale, bias = (self._leaf(f"{name}/{part}", layer) for part in ("scale", "bias"))
        return self.functional.layer_norm(
            x, x.shape[-1:], scale, bias, self.model.layer_norm_epsilon
        )

    def _linear(self, name: str, x: Any, layer: int | None = None, inputs: int = 1) -> Any:
        kernel, bias = (self._leaf(f"{name}/{part}", layer) for part in ("kernel", "bias"))
        return self.torch.tensordot(x, kernel, dims=inputs) + bias

    def _leaf(self, name: str, layer: int | None) -> Any:
        return self.leaves[name] if layer is None else self.leaves[name][layer]


def _same(queries: Any, keys: Any) -> Any:
    """Bool [B,Q,S]: of one segment, which is not padding."""
    return (queries[:, :, None] == keys[:, None, :]) & (queries[:, :, None] > 0)


def without_key_biases(name: str, leaf: np.ndarray) -> np.ndarray:
    """What an output depends on: a softmax over keys does not see what is added to all of them."""
    if name.endswith(("qkv/bias", "key_value/bias")):
        keys = 1 if "qkv" in name else 0
        return np.delete(leaf, keys, axis=1)
    return leaf


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("stage", RUNS)
def test_sixty_steps_are_those_of_pytorch(stage: str, pack: bool, tmp_path: Path) -> None:
    config = configured(stage, tmp_path, pack=pack)
    batches = list(itertools.islice(make_iterator(config.train_data), STEPS))
    assert (batches[0]["encoder_segment_ids"].max() > 1) == pack
    before, after, values = program_runs.run(config, batches)
    assert sum(one.get("prediction_overflow", 0.0) for one in values) == 0
    reference = InPyTorch(config, before.params)
    losses = np.array([reference.step(batch, n) for n, batch in enumerate(batches)])
    ours = np.array([one["loss"] for one in values])
    masked = [("tokens_loss" in one) for one in values]
    assert masked == [stage == "stage1" or n < LAST_MASKED for n in range(STEPS)]
    assert losses[-5:].mean() < losses[:5].mean() - 0.3  # something was learnt
    np.testing.assert_allclose(ours, losses, rtol=0, atol=1e-4)
    found = {"/".join(path): leaf for path, leaf in flatten_dict(after.params).items()}
    started = {"/".join(path): leaf for path, leaf in flatten_dict(before.params).items()}
    for name, leaf in found.items():
        mine = without_key_biases(name, np.asarray(leaf))
        theirs = without_key_biases(name, reference.leaves[name].detach().numpy())
        moved = np.linalg.norm(theirs - without_key_biases(name, np.asarray(started[name])))
        assert np.linalg.norm(mine - theirs) <= 1e-4 * max(np.linalg.norm(theirs), moved), name
