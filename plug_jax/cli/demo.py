"""`plug-jax demo`: both stages of PLUG on real Chinese news, in minutes on a CPU."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from plug_jax import strict_json
from plug_jax.atomic_files import write_whole
from plug_jax.cli.train import configure
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.evaluation.baselines import Baselines
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
_NGRAM_ORDERS = (2, 3, 4)


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
        baselines, ngrams, lengths = _read_data(stage2_config)
    with _timed("generate", seconds):
        texts = _generate(stage2_dir)
    _write_results(
        output,
        Results(
            stage1=stage1,
            stage2=stage2,
            perplexity_before_last_phase=_perplexity_before_last_phase(stage2_config),
            baselines=baselines,
            ngrams=ngrams,
            texts=texts,
            seconds=seconds,
            config={
                "stage1": _describe(stage1_config),
                "stage2": _describe(stage2_config),
                "corpus": dataclasses.asdict(corpus),
            },
        ),
    )
    _plot(output, stage1_config, stage2_config, lengths)
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


def _read_data(
    config: TrainConfig,
) -> tuple[Baselines, dict[int, float], dict[str, list[int]]]:
    """Baselines on the held-out text, and the lengths drawn in one pass over the training text.

    The second are perplexities of n-grams.
    """
    from plug_jax.data import pipeline
    from plug_jax.data.packing import unpack_examples
    from plug_jax.evaluation import baselines

    assert config.eval_data is not None
    once = dataclasses.replace(config.train_data, num_epochs=1, shuffle=False)
    vocab_size = config.model.vocab_size
    train, held_out = (list(pipeline.make_iterator(data)) for data in (once, config.eval_data))
    examples = [one for batch in train for one in unpack_examples(batch)]
    lengths = {
        "encoder lengths": [len(one["encoder_input_tokens"]) for one in examples],
        "decoder lengths": [len(one["decoder_target_tokens"]) for one in examples],
    }
    ngrams = baselines.ngram_perplexities(
        examples,
        (one for batch in held_out for one in unpack_examples(batch)),
        orders=_NGRAM_ORDERS,
        vocab_size=vocab_size,
    )
    counts = baselines.decoder_token_counts(train, vocab_size)
    return baselines.context_free_baselines(counts, held_out), ngrams, lengths


def _generate(checkpoint: Path) -> dict[str, str]:
    from plug_jax.inference.generator import generate
    from plug_jax.inference.model import InferenceModel
    from plug_jax.inference.options import GenerationOptions

    model = InferenceModel.load(checkpoint)
    samples = generate(model, PROMPTS, GenerationOptions(max_new_tokens=_NEW_TOKENS))
    return {prompt: text.text for prompt, (text,) in zip(PROMPTS, samples, strict=True)}


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


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that the report says."""

    stage1: dict[str, float]
    stage2: dict[str, float]
    perplexity_before_last_phase: float
    baselines: Baselines
    ngrams: dict[int, float]  # perplexities by order
    texts: dict[str, str]
    seconds: dict[str, float]
    config: dict[str, Any]


def _write_results(output: Path, results: Results) -> None:
    """summary.json and report.md."""
    held_out = {
        **results.stage1,  # sentence and word order are measured in stage 1 alone
        **results.stage2,
        "decoder_perplexity_before_last_phase": results.perplexity_before_last_phase,
        "decoder_perplexity_after_last_phase": results.stage2["decoder_perplexity"],
    }
    summary = {
        "held_out": held_out,
        "held_out_stage1": results.stage1,
        "held_out_stage2": results.stage2,
        "baseline": {
            **dataclasses.asdict(results.baselines),
            "ngram_perplexity": {str(order): value for order, value in results.ngrams.items()},
        },
        "generated": results.texts,
        "seconds": {**results.seconds, "total": round(sum(results.seconds.values()), 1)},
        "config": results.config,
    }
    text = strict_json.dumps(summary, indent=2, ensure_ascii=False, default=str)
    write_whole(output / "summary.json", text + "\n")
    base = results.baselines
    rows = [
        ("decoder perplexity", "decoder_perplexity", base.unigram_perplexity, "unigram"),
        ("masked LM accuracy", "mlm_accuracy", base.most_frequent_token_accuracy, "commonest"),
        ("sentence accuracy", "sentence_accuracy", base.sentence_chance, "chance"),
    ]
    table = "\n".join(
        f"| {name} | {held_out[key]:.4g} | {value:.4g} ({kind}) |"
        for name, key, value, kind in rows
    )
    ngrams = ", ".join(f"{value:.4g} ({n} characters)" for n, value in results.ngrams.items())
    generated = "\n".join(f"- {prompt} **{text}**" for prompt, text in results.texts.items())
    times = ", ".join(f"{name} {value:.0f} s" for name, value in summary["seconds"].items())
    report = _REPORT.format(
        table=table,
        before=held_out["decoder_perplexity_before_last_phase"],
        after=held_out["decoder_perplexity_after_last_phase"],
        word_order=held_out["word_order_accuracy"],
        ngrams=ngrams,
        generated=generated,
        times=times,
    )
    (output / "report.md").write_text(report, encoding="utf-8")
    print(report)


_REPORT = """# PLUG in small: both stages on the People's Daily of January 1998

| held-out articles | model | no context |
|---|---|---|
{table}

Masked LM and the decoder are measured at the end of stage 2, the sentence objective at the end of
stage 1, as is the accuracy on shuffled positions: {word_order:.3f}. Decoder perplexity was
{before:.1f} when masked LM was dropped, 90% through stage 2, and {after:.1f} at the end. Kneser-Ney
n-grams of the same training text have {ngrams}.

![losses](losses.png)

Windows of random length, one part for the encoder, the next for the decoder:

![lengths](lengths.png)

Prompts and **continuations**:

{generated}

Time: {times}.
"""


def _plot(
    output: Path, stage1: TrainConfig, stage2: TrainConfig, lengths: dict[str, list[int]]
) -> None:
    from plug_jax.data.demo_corpus import MAX_LENGTH, MIN_LENGTH
    from plug_jax.evaluation import plots
    from plug_jax.training.writers import read_metrics

    titles = {"stage 1: StructBERT encoder": stage1, "stage 2: PALM decoder plugged on": stage2}
    switch = _masked_lm(stage2).last_step(stage2.steps)
    plots.plot_losses(
        {title: read_metrics(Path(config.model_dir)) for title, config in titles.items()},
        output / "losses.png",
        marks={"stage 2: PALM decoder plugged on": (switch, "masked LM dropped")},
    )
    bounds = (MIN_LENGTH, MAX_LENGTH)
    plots.plot_lengths(lengths, output / "lengths.png", bounds=dict.fromkeys(lengths, bounds))
