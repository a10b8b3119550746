"""Opens a run before its first step: data, checkpoints and state."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import jax

from plug_jax.checkpoints.best import BestSoFar
from plug_jax.checkpoints.format import PlainPath
from plug_jax.checkpoints.saved_model import vocabulary_fingerprint
from plug_jax.compilation import Compilation, use_compilation_cache
from plug_jax.data.drops import reset_counts
from plug_jax.data.pipeline import pipeline
from plug_jax.data.pipeline.file_checks import uneven_streams
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.downstream.record_task import check_task, record_counts, task_description
from plug_jax.errors import PlugError
from plug_jax.hosts.activity import doing
from plug_jax.objectives.composition import features_of
from plug_jax.techniques.child_tuning import ChildTuningD, with_mask
from plug_jax.training.checkpointing import Checkpoints
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
    """A run's inputs, state and outputs, at the step from which it resumes."""

    config: TrainConfig  # in steps
    program: TrainProgram
    compilation: Compilation  # of the program; it has begun if steps remain
    vocabulary: PlugVocabulary
    feed: Feed
    evaluate: Evaluator | None
    checkpoints: Checkpoints
    best: BestSoFar | None
    state: TrainState
    records: list[dict[str, Any]]  # of metrics.jsonl, up to this step
    is_new: bool  # not resumed from its own checkpoint
    notes: list[str]  # for the user
    goodput: Goodput
    progress: ProgressReport

    @property
    def step(self) -> int:
        """The step from which it resumes, 0 for a new run."""
        return int(self.state.step)

    @property
    def is_done(self) -> bool:
        """Whether that is the last step."""
        return self.step >= self.config.steps or (self.best is not None and self.best.exhausted)


def open_run(config: TrainConfig, stack: contextlib.ExitStack) -> OpenRun:
    """Open what `config` names; `stack` closes it.

    Raises:
        PlugError: configuration, data or checkpoint that do not match.
    """
    writes = jax.process_index() == 0  # the first process writes and reports
    model_dir = PlainPath.of(config.model_dir)
    goodput = Goodput(model_dir, writes=writes)
    use_compilation_cache(config.compilation_cache_dir)
    task = config.train_data.mixture_or_task_name
    vocabulary = pipeline.vocabulary_of(task, module=config.train_data.module)
    check_vocabulary(config.model, vocabulary, task)
    check_task(task, config.objectives)
    if config.eval_data is not None:
        _check_evaluation(config, config.eval_data, vocabulary)
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
    # Before the processes meet to restore, after which the first one may rewrite that file.
    records = read_metrics(model_dir)
    check_space(config, program.layout.abstract, start=latest or 0)
    compilation = Compilation(program.lower, config.partitioner.context)
    if latest is None or latest < config.steps:
        compilation.start()
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
        compilation=compilation,
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


def _check_evaluation(config: TrainConfig, data: DatasetConfig, vocabulary: PlugVocabulary) -> None:
    """PlugError if token ids or label numbers mean something else in the evaluation's task."""
    task, trained_on = data.mixture_or_task_name, config.train_data.mixture_or_task_name
    if task == trained_on:
        return
    of_task = pipeline.vocabulary_of(task, module=data.module)
    if vocabulary_fingerprint(of_task) != vocabulary_fingerprint(vocabulary):
        raise PlugError(
            f"the task {task!r} of the evaluation has another vocabulary than {trained_on!r}, the "
            "run's; give both the same"
        )
    check_task(task, config.objectives)


def _open_data(config: TrainConfig) -> tuple[Feed, Evaluator | None]:
    reset_counts()  # an earlier run in this process does not count
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
    """Print a training run's notes, and read its first batches.

    Raises:
        PlugError: they cannot be made, or files are damaged.
    """
    config = run.config
    for data in filter(None, (config.train_data, config.eval_data)):
        run.notes += record_counts(data.mixture_or_task_name, data.split)
    if jax.process_index() == 0 and (note := uneven_streams(config.train_data, run.feed.streams)):
        run.notes.append(note)
    for note in run.notes:
        run.progress.say(note)
    doing("reading the first batches")
    check_data(config, run.feed, run.evaluate)


def with_chosen_parameters(run: OpenRun) -> TrainState:
    """Its state; for a new run with Child-Tuning D, after the selection pass over its data."""
    child_tuning = run.config.techniques.child_tuning
    if not run.is_new or not isinstance(child_tuning, ChildTuningD):
        return run.state
    run.progress.say("Child-Tuning D: a pass over the training data")
    fisher = fisher_of(run.config, run.program, run.state.params)
    doing("choosing the parameters of Child-Tuning D", watched=False)  # compiles for each layer
    mask = top_mask(fisher, child_tuning.p)
    return dataclasses.replace(run.state, opt_state=with_mask(run.state.opt_state, mask))
