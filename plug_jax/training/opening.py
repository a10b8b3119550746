"""A run before its first step: its data, checkpoints and state are opened, and looked through."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import jax

from plug_jax.data import pipeline
from plug_jax.data.drops import reset_counts
from plug_jax.data.vocabularies import PlugVocabulary
from plug_jax.downstream.record_task import check_task, record_counts, task_description
from plug_jax.hosts.activity import doing
from plug_jax.objectives.composition import features_of
from plug_jax.techniques.child_tuning import ChildTuningD, with_mask
from plug_jax.training.best import BestSoFar
from plug_jax.training.checkpoint_format import PlainPath
from plug_jax.training.checkpointing import Checkpoints
from plug_jax.training.compilation import use_compilation_cache
from plug_jax.training.evaluate import Evaluator, check_vocabulary
from plug_jax.training.feed import Feed
from plug_jax.training.fisher import fisher_of, top_mask
from plug_jax.training.goodput import Goodput
from plug_jax.training.initial_checkpoint import first_state
from plug_jax.training.preflight import check_data, check_space
from plug_jax.training.program import TrainConfig, TrainProgram, train_program
from plug_jax.training.state import TrainState
from plug_jax.training.writers import ProgressReport, read_metrics


@dataclasses.dataclass
class OpenRun:
    """What a run reads, trains and writes, at the step that it goes on from."""

    config: TrainConfig  # in steps
    program: TrainProgram
    vocabulary: PlugVocabulary
    feed: Feed
    evaluate: Evaluator | None
    checkpoints: Checkpoints
    best: BestSoFar | None
    state: TrainState
    records: list[dict[str, Any]]  # of metrics.jsonl, up to its step
    is_new: bool  # not from a checkpoint of its own
    notes: list[str]  # what a person should know
    goodput: Goodput
    progress: ProgressReport

    @property
    def step(self) -> int:
        """The one that it goes on from, 0 for a new run."""
        return int(self.state.step)

    @property
    def is_done(self) -> bool:
        """Whether that is its last."""
        return self.step >= self.config.steps or (self.best is not None and self.best.exhausted)


def open_run(config: TrainConfig, stack: contextlib.ExitStack) -> OpenRun:
    """Open what `config` names; `stack` closes it.

    Raises:
        PlugError: configuration, data or checkpoint that do not fit each other.
    """
    writes = jax.process_index() == 0  # of several processes the first writes and reports
    model_dir = PlainPath.of(config.model_dir)
    goodput = Goodput(model_dir, writes=writes)
    use_compilation_cache(config.compilation_cache_dir)
    task = config.train_data.mixture_or_task_name
    vocabulary = pipeline.vocabulary_of(task, module=config.train_data.module)
    check_vocabulary(config.model, vocabulary, task)
    check_task(task, config.objectives)
    config = config.in_steps()
    stack.enter_context(config.partitioner.context())
    program = train_program(config)
    feed, evaluate = _open_data(config)
    description = task_description(task, config.objectives)
    checkpoints = Checkpoints(
        model_dir,
        config.checkpoint,
        model=config.model,
        vocabulary=vocabulary,
        task=description,
        best=config.best,
        lora=config.techniques.lora,
        say=lambda line: progress.say(line),
    )
    stack.callback(checkpoints.close)
    latest = checkpoints.latest_step()
    # Before the processes meet to restore: then the first one may write that file anew.
    records = read_metrics(model_dir)
    check_space(config, program.layout.abstract, start=latest or 0)
    if latest is not None:
        with goodput.part("restore"):
            state, note = checkpoints.restore(program.layout, feed)
    else:
        state, note = first_state(config, program, vocabulary, description)
    start = int(state.step)
    records = [record for record in records if record["step"] <= start]
    best = None
    if config.best is not None:
        best = BestSoFar(config.best, records)
        best.keep_stored(checkpoints.steps())
    progress = stack.enter_context(
        ProgressReport("train", total=config.steps, start=start, quiet=not writes)
    )
    return OpenRun(
        config=config,
        program=program,
        vocabulary=vocabulary,
        feed=feed,
        evaluate=evaluate,
        checkpoints=checkpoints,
        best=best,
        state=state,
        records=records,
        is_new=latest is None,
        notes=[] if note is None else [note],
        goodput=goodput,
        progress=progress,
    )


def _open_data(config: TrainConfig) -> tuple[Feed, Evaluator | None]:
    reset_counts()  # of this process: an earlier run is not this one's
    feed = Feed(
        config.train_data,
        features_of(config.objectives),
        model=config.model,
        sharding=config.partitioner.batch_sharding,
    )
    if config.eval_data is None:
        return feed, None
    evaluator = Evaluator(
        config.model,
        config.objectives,
        config.eval_data,
        config.partitioner,
        config.step,
        keep_batches=True,
    )
    return feed, evaluator


def check_run(run: OpenRun) -> None:
    """Say what a person should know of a run that trains, and read its first batches.

    Raises:
        PlugError: they cannot be made, or of files that are damaged.
    """
    config = run.config
    for data in filter(None, (config.train_data, config.eval_data)):
        run.notes += record_counts(data.mixture_or_task_name, data.split)
    for note in run.notes:
        run.progress.say(note)
    doing("reading the first batches")
    check_data(config, run.feed, run.evaluate)


def with_chosen_parameters(run: OpenRun) -> TrainState:
    """Its state; of a new run with Child-Tuning D, after a pass over its data that chooses them."""
    child_tuning = run.config.techniques.child_tuning
    if not run.is_new or not isinstance(child_tuning, ChildTuningD):
        return run.state
    run.progress.say("Child-Tuning D: a pass over the training data")
    mask = top_mask(fisher_of(run.config, run.program, run.state.params), child_tuning.p)
    return dataclasses.replace(run.state, opt_state=with_mask(run.state.opt_state, mask))
