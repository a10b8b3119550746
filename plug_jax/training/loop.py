"""The training loop."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import jax
from etils import epath

from plug_jax.data import pipeline
from plug_jax.data.drops import reset_counts
from plug_jax.data.vocabularies import save_vocabulary
from plug_jax.training import metrics as metrics_lib
from plug_jax.training.checkpointing import Checkpoints, initialize_from
from plug_jax.training.compilation import compile_program, use_compilation_cache
from plug_jax.training.evaluate import Evaluator, check_vocabulary
from plug_jax.training.feed import Feed, total_drops
from plug_jax.training.interrupts import Interrupted, interrupts
from plug_jax.training.metrics import Mean
from plug_jax.training.profiling import StepProfile
from plug_jax.training.program import TrainConfig, train_program
from plug_jax.training.state import init_state
from plug_jax.training.timing import StepTimer
from plug_jax.training.writers import MetricsWriter, ProgressReport


def train(config: TrainConfig) -> dict[str, float]:
    """Train until `train_steps`, from the newest checkpoint in MODEL_DIR if there is one.

    Ctrl-C (or SIGTERM) ends the run after the step under way with a checkpoint; the same command
    goes on from there, and gives the losses that an uninterrupted run would have given.

    Returns:
        The last evaluation's metrics by name; without `eval_data`, the last step's.

    Raises:
        PlugError: configuration, data or checkpoint that do not fit each other.
        KeyboardInterrupt: after the checkpoint of an interrupted run is written.
    """
    with contextlib.ExitStack() as stack:
        return _Trainer(config, stack).run()


class _Trainer:
    """One run: what is built once, and the loop over it."""

    def __init__(self, config: TrainConfig, stack: contextlib.ExitStack) -> None:
        self._config = config
        use_compilation_cache(config.compilation_cache_dir)
        task = config.train_data.mixture_or_task_name
        vocabulary = pipeline.vocabulary_of(task, module=config.train_data.module)
        check_vocabulary(config.model, vocabulary, task)
        partitioner = config.partitioner
        stack.enter_context(partitioner.context())
        self._program = program = train_program(config)
        layout = program.layout
        reset_counts()  # of this process: an earlier run is not this one's
        self._feed = Feed(
            config.train_data, model=config.model, sharding=partitioner.batch_sharding
        )
        self._evaluate = (
            Evaluator(config.model, config.eval_data, partitioner, config.step)
            if config.eval_data is not None
            else None
        )
        self._model_dir = epath.Path(config.model_dir)
        self._checkpoints = Checkpoints(
            self._model_dir, config.checkpoint, model=config.model, vocabulary=vocabulary
        )
        stack.callback(self._checkpoints.close)
        if self._checkpoints.latest_step() is not None:
            self._state = self._checkpoints.restore(layout, self._feed)
        else:
            self._state = init_state(program.model, program.optimizer, layout, seed=config.seed)
            if config.initial_checkpoint is not None:
                self._state = initialize_from(
                    config.initial_checkpoint, self._state, layout, vocabulary=vocabulary
                )
        self._start = int(self._state.step)
        # Of several processes the first writes and reports.
        self._first_process = jax.process_index() == 0
        self._writer: MetricsWriter | None = None
        if self._first_process:
            save_vocabulary(vocabulary, self._model_dir / "vocabulary")
            self._writer = MetricsWriter(self._model_dir, start_step=self._start)
            stack.callback(self._writer.close)
        self._progress = stack.enter_context(
            ProgressReport(
                "train",
                total=config.train_steps,
                start=self._start,
                quiet=not self._first_process,
            )
        )
        self._profile = StepProfile(
            self._model_dir / "profile", config.profile_steps if self._first_process else None
        )
        stack.callback(self._profile.close)
        self._timer = StepTimer()

    def run(self) -> dict[str, float]:
        """Train to the end; see `train`."""
        if self._start < self._config.train_steps:
            with interrupts() as interrupted:
                values = self._train(interrupted)
        else:
            self._progress.say(f"nothing to do: {self._config.model_dir} is at step {self._start}")
            values = self._score(self._start) if self._evaluate else {}
        self._finish(values)
        return values

    def _train(self, interrupted: Callable[[int], bool]) -> dict[str, float]:
        """The steps that are left; returns the last metrics."""
        config, total = self._config, self._config.train_steps
        train_step = compile_program(self._program.lower)
        self._progress.say(f"training step {train_step}")
        if self._evaluate:
            self._progress.say(f"evaluation step {self._evaluate.compiled()}")
        values: dict[str, float] = {}
        to_log: tuple[int, dict[str, Mean]] | None = None
        for step in range(self._start + 1, total + 1):
            with self._profile.step(step):
                with self._timer.part("data_wait"):
                    batch = next(self._feed)
                with self._timer.part("dispatch"):
                    self._state, metrics = train_step.call(self._state, batch)
            self._timer.dispatched(metrics["tokens"])
            # Metrics are read one step late: the devices already have their next work.
            if to_log is not None:
                values = self._log(*to_log)
                to_log = None
            stop = interrupted(step) and step < total
            if step % config.log_every == 0 or step == total or stop:
                to_log = (step, metrics)
            evaluate = self._evaluate and (step % config.eval_every == 0 or step == total)
            save = step % config.checkpoint.every == 0 or step == total or stop
            traced = self._profile.ends_at(step)
            if not (evaluate or save or traced):
                continue
            self._timer.finish()
            if to_log is not None:
                values = self._log(*to_log)
                to_log = None
            with self._timer.paused():
                if traced:
                    self._profile.close()
                if evaluate and not stop:
                    values = self._score(step)
                if save:
                    self._checkpoints.save(self._state, self._feed)
            if stop:
                self._progress.say(f"interrupted: saving the checkpoint of step {step}")
                raise Interrupted
        return values

    def _log(self, step: int, metrics: dict[str, Mean]) -> dict[str, float]:
        values = metrics_lib.summarize(metrics_lib.add([metrics]))
        values.pop("tokens")
        values |= self._timer.read()
        if self._writer:
            self._writer.write(step, "train", values)
        self._progress.update(step, values)
        return values

    def _score(self, step: int) -> dict[str, float]:
        assert self._evaluate is not None
        values = self._evaluate(self._state.params)
        if self._writer:
            self._writer.write(step, "validation", values)
        shown = "  ".join(
            f"{k} {v:.4g}" for k, v in values.items() if not k.endswith("pad_fraction")
        )
        self._progress.say(f"validation at step {step}: {shown}")
        return values

    def _finish(self, values: dict[str, float]) -> None:
        drops = total_drops()
        if drops:
            counts = ", ".join(f"{reason} {count:,}" for reason, count in sorted(drops.items()))
            self._progress.say(f"dropped while reading: {counts}")
        if self._first_process:
            summary = {"step": self._config.train_steps, "metrics": values, "dropped": drops}
            text = json.dumps(summary, indent=2) + "\n"
            (self._model_dir / "summary.json").write_text(text)
