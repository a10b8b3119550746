"""`plug-jax demo`: both stages of PLUG on real Chinese news, in minutes on a CPU."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from plug_jax.cli.demo_report import Results, write_results
from plug_jax.cli.train import configure
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    import numpy as np

    from plug_jax.evaluation.baselines import Baselines
    from plug_jax.evaluation.ngram_models import KneserNey
    from plug_jax.evaluation.text_quality import TextQuality
    from plug_jax.objectives.masked_lm import MaskedLM
    from plug_jax.training.program import TrainConfig

SUMMARY = "Train both stages on real Chinese news with a small model, and write texts."
EXAMPLE = """example:
  plug-jax demo --output demo_output

Interrupted, the same command goes on from the last checkpoint; --fresh starts again. Any gin macro
of demo/common.gin can be set: --gin.BATCH_SIZE=8.
"""
UNKNOWN_ARGUMENTS = True

PROMPTS = (
    "中共中央总书记、国家主席",
    "新华社北京1月5日电，记者今天从有关部门获悉，",
    "随着改革开放的深入，我国经济",
)
_STAGE1 = "stage1"
_VOCABULARY_SIZE = 4096
_NEW_TOKENS = 60
_NGRAM_ORDERS = (1, 2, 3, 4)
_TEXTS_TO_JUDGE = 64  # continuations of held-out texts, of _NEW_TOKENS each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plug-jax demo`."""
    parser.add_argument("--output", default="demo_output", help="directory to write (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="remove what is in it first")


def run(args: argparse.Namespace) -> int:
    """Make the data, train both stages, generate, and write the report."""
    from plug_jax.cli import gin_config
    from plug_jax.cli.main import import_tensorflow

    import_tensorflow()
    output = Path(args.output)
    if args.fresh:
        shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    _run_demo(output, gin_config.overrides(args.unknown))
    return 0


def _run_demo(output: Path, overrides: list[str]) -> None:
    from plug_jax.data.demo_corpus import write_corpus
    from plug_jax.training.loop import train

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
        data = _read_data(stage2_config)
    with _timed("generate", seconds):
        texts, written = _generate(stage2_dir, data)
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


def trained_stage1(output: Path) -> Path:
    """MODEL_DIR of the demo's stage 1 in `output`; what is not there yet is made and trained."""
    from plug_jax.data.demo_corpus import write_corpus
    from plug_jax.training.loop import train
    from plug_jax.training.writers import read_summary

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
    """One piece a character; kept when it is there already."""
    from plug_jax.data.vocabulary_training import train_sentencepiece

    if directory.is_dir():
        return
    documents = text.read_text(encoding="utf-8").split("\n\n")
    train_sentencepiece(
        documents, directory=directory, vocab_size=_VOCABULARY_SIZE, model_type="char"
    )


@dataclasses.dataclass(frozen=True)
class _Data:
    """What is known of the texts without the model."""

    baselines: Baselines
    ngrams: Mapping[int, KneserNey]  # by order
    ngram_perplexities: dict[int, float]  # of held-out decoder tokens
    lengths: dict[str, list[int]]  # as drawn in one pass over the training text
    prompts: list[np.ndarray]  # encoder texts that are held out, with [CLS] and [SEP]
    continuations: list[np.ndarray]  # of them, _NEW_TOKENS each

    def quality(self, written: Sequence[np.ndarray]) -> TextQuality:
        """Of texts that continue the prompts."""
        from plug_jax.evaluation.text_quality import text_quality

        befores = (prompt[1:-1] for prompt in self.prompts)
        texts = list(zip(befores, written, strict=True))
        return text_quality(self.ngrams[max(self.ngrams)], texts)


def _read_data(config: TrainConfig) -> _Data:
    from plug_jax.data import pipeline
    from plug_jax.data.packing import unpack_examples
    from plug_jax.evaluation import baselines

    assert config.eval_data is not None
    once = dataclasses.replace(config.train_data, num_epochs=1, shuffle=False)
    vocab_size = config.model.vocab_size
    batches, held_out_batches = (
        list(pipeline.make_iterator(data)) for data in (once, config.eval_data)
    )
    train, held_out = (
        [one for batch in some for one in unpack_examples(batch)]
        for some in (batches, held_out_batches)
    )
    ngrams = {
        order: baselines.ngram_model(train, order=order, vocab_size=vocab_size)
        for order in _NGRAM_ORDERS
    }
    long = [one for one in held_out if len(one["decoder_target_tokens"]) > _NEW_TOKENS]
    judged = long[:_TEXTS_TO_JUDGE]
    return _Data(
        baselines=baselines.context_free_baselines(
            baselines.decoder_token_counts(batches, vocab_size), held_out_batches
        ),
        ngrams=ngrams,
        ngram_perplexities={
            order: baselines.ngram_perplexity(model, held_out) for order, model in ngrams.items()
        },
        lengths={
            "encoder lengths": [len(one["encoder_input_tokens"]) for one in train],
            "decoder lengths": [len(one["decoder_target_tokens"]) for one in train],
        },
        prompts=[one["encoder_original_tokens"] for one in judged],
        continuations=[one["decoder_target_tokens"][:_NEW_TOKENS] for one in judged],
    )


def _generate(checkpoint: Path, data: _Data) -> tuple[dict[str, str], TextQuality]:
    """Continuations of PROMPTS; and how good those of held-out texts are."""
    import numpy as np

    from plug_jax.inference.generator import generate
    from plug_jax.inference.model import InferenceModel
    from plug_jax.inference.request_options import GenerationOptions

    model = InferenceModel.load(checkpoint)
    samples = generate(model, PROMPTS, GenerationOptions(max_new_tokens=_NEW_TOKENS))
    texts = {prompt: text.text for prompt, (text,) in zip(PROMPTS, samples, strict=True)}
    as_long = GenerationOptions(max_new_tokens=_NEW_TOKENS, min_new_tokens=_NEW_TOKENS)
    written = generate(model, [prompt.tolist() for prompt in data.prompts], as_long)
    return texts, data.quality([np.array(text.ids) for (text,) in written])


def _check_switch_is_evaluated(config: TrainConfig) -> None:
    """The report compares the scores at the phase switch with the last ones."""
    switch = _masked_lm(config).last_step(config.steps)
    if not 0 < switch < config.steps or switch % config.eval_every:
        raise PlugError(
            f"the demo reports the scores at the phase switch, step {switch} of "
            f"{config.steps}, but evaluates every {config.eval_every} steps; choose "
            "TRAIN_STEPS and EVAL_EVERY so that the one falls on the other"
        )


def _perplexity_before_last_phase(config: TrainConfig) -> float:
    from plug_jax.training.writers import read_metrics

    switch = _masked_lm(config).last_step(config.steps)
    (value,) = (
        record["decoder_perplexity"]
        for record in read_metrics(Path(config.model_dir))
        if record["split"] == "validation" and record["step"] == switch
    )
    return value


def _masked_lm(config: TrainConfig) -> MaskedLM:
    from plug_jax.objectives.masked_lm import MaskedLM

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


def _plot(output: Path, stage1: TrainConfig, stage2: TrainConfig, data: _Data) -> None:
    from plug_jax.data.demo_corpus import MAX_LENGTH, MIN_LENGTH
    from plug_jax.evaluation import plots
    from plug_jax.training.writers import read_metrics

    records1, records2 = (read_metrics(Path(one.model_dir)) for one in (stage1, stage2))
    titles = ("stage 1: StructBERT encoder", "stage 2: PALM decoder plugged on")
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
