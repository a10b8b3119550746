"""The pre-training demo: both stages on newspaper text, and a report."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from plug_jax.data.sources.demo_corpus import MAX_LENGTH, MIN_LENGTH, write_corpus
from plug_jax.data.vocabularies.sentencepiece_training import train_sentencepiece
from plug_jax.demo import plots
from plug_jax.demo.held_out import HeldOut, read_held_out, write_texts
from plug_jax.demo.report import Results, write_results
from plug_jax.errors import PlugError
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.training.loop import train
from plug_jax.training.program import TrainConfig
from plug_jax.training.writers import read_metrics, read_summary

# Gin files and bindings to a run's settings; only the command line knows gin.
Configure = Callable[[list[str], list[str]], TrainConfig]

_STAGE1 = "stage1"
_VOCABULARY_SIZE = 4096


def run_demo(output: Path, overrides: Sequence[str], configure: Configure) -> None:
    """Make the data, train both stages, generate, and write the report to `output`.

    Raises:
        PlugError: the settings leave no evaluation at the phase switch, which the report shows.
    """
    seconds: dict[str, float] = {}
    bindings = [f"DEMO_DIR = {str(output)!r}", *overrides]
    with _timed("corpus", seconds):
        corpus = write_corpus(output / "corpus")
    with _timed("vocabulary", seconds):
        _train_vocabulary(corpus.train, output / "vocabulary")
    stage1_dir, stage2_dir = output / _STAGE1, output / "stage2"
    stage1_config = configure(["demo/stage1.gin"], [*bindings, f"MODEL_DIR = {str(stage1_dir)!r}"])
    stage2_config = configure(
        ["demo/stage2.gin"],
        [
            *bindings,
            f"MODEL_DIR = {str(stage2_dir)!r}",
            f"INITIAL_CHECKPOINT = {str(stage1_dir)!r}",
        ],
    )
    _check_switch_is_evaluated(stage2_config)
    with _timed("stage 1", seconds):
        stage1 = train(stage1_config)
    with _timed("stage 2", seconds):
        stage2 = train(stage2_config)
    with _timed("baselines", seconds):
        data = read_held_out(stage2_config)
    with _timed("generate", seconds):
        texts, written = write_texts(stage2_dir, data)
    write_results(
        output,
        Results(
            stage1=stage1,
            stage2=stage2,
            perplexity_before_last_phase=_perplexity_before_last_phase(stage2_config),
            baselines=data.baselines,
            ngrams=data.ngram_perplexities,
            texts=texts,
            quality={"the model": written, "people": data.quality(data.continuations)},
            seconds=seconds,
            config={
                "stage1": _describe(stage1_config),
                "stage2": _describe(stage2_config),
                "corpus": dataclasses.asdict(corpus),
            },
        ),
    )
    _plot(output, stage1_config, stage2_config, data)
    print(f"\nThe report is {output / 'report.md'}", file=sys.stderr)


def trained_stage1(output: Path, configure: Configure) -> Path:
    """MODEL_DIR of the demo's stage 1 in `output`, made and trained if missing."""
    stage1 = output / _STAGE1
    if read_summary(epath.Path(stage1)) is None:
        print(f"== stage 1 of the demo, to {stage1}", file=sys.stderr)
        corpus = write_corpus(output / "corpus")
        _train_vocabulary(corpus.train, output / "vocabulary")
        bindings = [f"DEMO_DIR = {str(output)!r}", f"MODEL_DIR = {str(stage1)!r}"]
        train(configure(["demo/stage1.gin"], bindings))
    return stage1


@contextlib.contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"== {name}", file=sys.stderr)
    started = time.monotonic()
    yield
    seconds[name.replace(" ", "")] = round(time.monotonic() - started, 1)


def _train_vocabulary(text: Path, directory: Path) -> None:
    """One piece per character; an existing vocabulary is kept."""
    if directory.is_dir():
        return
    documents = text.read_text(encoding="utf-8").split("\n\n")
    train_sentencepiece(
        documents, directory=directory, vocab_size=_VOCABULARY_SIZE, model_type="char"
    )


def _check_switch_is_evaluated(config: TrainConfig) -> None:
    """The report compares scores at the phase switch with the final ones."""
    switch = _masked_lm(config).last_step(config.steps)
    if not 0 < switch < config.steps or switch % config.eval_every:
        raise PlugError(
            f"the demo reports the scores at the phase switch, step {switch} of "
            f"{config.steps}, but evaluates every {config.eval_every} steps; choose "
            "TRAIN_STEPS and EVAL_EVERY so that the one falls on the other"
        )


def _perplexity_before_last_phase(config: TrainConfig) -> float:
    switch = _masked_lm(config).last_step(config.steps)
    (value,) = (
        record["decoder_perplexity"]
        for record in read_metrics(Path(config.model_dir))
        if record["split"] == "validation" and record["step"] == switch
    )
    return value


def _masked_lm(config: TrainConfig) -> MaskedLM:
    return next(one for one in config.objectives if isinstance(one, MaskedLM))


def _describe(config: TrainConfig) -> dict[str, Any]:
    return {
        "model": config.model.to_dict(),
        "train_steps": config.steps,
        "batch_size": config.train_data.batch_size,
        "feature_lengths": dict(config.train_data.feature_lengths),
        "learning_rate": config.optimizer.learning_rate,
        "masked_lm_until": _masked_lm(config).until,
    }


def _plot(output: Path, stage1: TrainConfig, stage2: TrainConfig, data: HeldOut) -> None:
    records1, records2 = (read_metrics(Path(one.model_dir)) for one in (stage1, stage2))
    titles = ("stage 1: StructBERT encoder", "stage 2: PALM decoder added")
    switch = _masked_lm(stage2).last_step(stage2.steps)
    plots.plot_losses(
        dict(zip(titles, (records1, records2), strict=True)),
        output / "losses.png",
        marks={titles[1]: (switch, "masked LM dropped")},
    )
    accuracies = ("mlm_accuracy", "word_order_accuracy", "sentence_accuracy")
    plots.plot_learning(
        {
            titles[0]: plots.Learning(records1, accuracies),
            titles[1]: plots.Learning(
                records2,
                ("decoder_perplexity",),
                lines={f"{n} characters": value for n, value in data.ngram_perplexities.items()},
                logarithmic=True,
            ),
        },
        output / "learning.png",
    )
    bounds = (MIN_LENGTH, MAX_LENGTH)
    plots.plot_lengths(
        data.lengths, output / "lengths.png", bounds=dict.fromkeys(data.lengths, bounds)
    )
