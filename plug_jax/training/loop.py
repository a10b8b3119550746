"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NoReturn

import jax

from plug_jax.atomic_files import write_whole
from plug_jax.checkpoints.format import PlainPath
from plug_jax.checkpoints.saving import writing
from plug_jax.compilation import CompiledProgram
from plug_jax.data.drops import what_was_dropped
from plug_jax.data.vocabularies.vocabulary import save_vocabulary
from plug_jax.downstream.formats import Outputs
from plug_jax.hosts.activity import doing
from plug_jax.hosts.supervision import Start, tell
from plug_jax.hosts.watchdog import watched
from plug_jax.metrics import Mean, add
from plug_jax.objectives.composition import summarize_metrics
from plug_jax.techniques.lora import LORA
from plug_jax.training.confusions import draw_confusion
from plug_jax.training.interrupts import Interrupts, interrupts
from plug_jax.training.model_dir import held
from plug_jax.training.opening import OpenRun, check_run, open_run, with_chosen_parameters
from plug_jax.training.profiling import StepProfile
from plug_jax.training.program import TrainConfig
from plug_jax.training.safeguard import Safeguard
from plug_jax.training.timing import StepTimer
from plug_jax.training.writers import (
    MetricsWriter,
    read_metrics,
    read_summary,
    write_summary,
)


def train(config: TrainConfig) -> dict[str, float]:
    """Train to the end, from the newest checkpoint in MODEL_DIR if there is one.

    Ctrl-C, SIGTERM or a maintenance notice end the run after the current step with a checkpoint;
    the same command resumes from there, with the losses of an uninterrupted run. A finished run is
    not changed.

    Returns:
        The last evaluation's metrics by name; without `eval_data`, the last step's.

    Raises:
        PlugError: configuration, data or checkpoint that do not match; ModelDirInUse: another run
            writes to MODEL_DIR.
        Interrupted: after the checkpoint of an interrupted run is written.
    """
    model_dir = PlainPath.of(config.model_dir)
    with watched(config.watchdog, model_dir), contextlib.ExitStack() as stack:
        doing("starting", watched=False)
        stack.enter_context(held(model_dir))
        return _Trainer(open_run(config, stack), stack).run()


@dataclasses.dataclass(frozen=True)
class _Pause:
    """What is due after a step while the devices wait."""

    evaluate: bool
    save: bool
    end_profile: bool
    stop: bool  # it was interrupted
    last: bool


class _Trainer:
    """The loop over a run's steps, and its outputs."""

    def __init__(self, opened: OpenRun, stack: contextlib.ExitStack) -> None:
        self._config, self._program = opened.config, opened.program
        self._compilation = opened.compilation
        self._feed, self._evaluate = opened.feed, opened.evaluate
        self._checkpoints, self._best = opened.checkpoints, opened.best
        self._goodput, self._progress = opened.goodput, opened.progress
        self._state, self._start = opened.state, opened.step
        # Only the first process writes.
        self._writes = jax.process_index() == 0
        self._model_dir = PlainPath.of(opened.config.model_dir)
        self._writer: MetricsWriter | None = None
        self._values: dict[str, float] = {}  # the last metrics
        self._unread: tuple[int, dict[str, Mean]] | None = None  # to be logged
        self._is_done = opened.is_done
        if not self._is_done:
            self._begin(opened, stack)

    def run(self) -> dict[str, float]:
        """Train to the end; see `train`."""
        if self._is_done:
            return self._already_done()
        tell(Start(self._start, jax.process_count(), self._config.watchdog.lost_after))
        with interrupts() as interrupted:
            values = self._train(interrupted)
            doing("finishing")
            with self._goodput.part("save"):
                self._checkpoints.finish()
        self._goodput.write(ended=True)
        self._progress.say(self._goodput.table())
        self._finish(int(self._state.step), values)
        return values

    def _begin(self, opened: OpenRun, stack: contextlib.ExitStack) -> None:
        """One-time work if steps remain; nothing is written before the checks."""
        check_run(opened)
        self._goodput.resumed(self._start)
        # An evaluation left out because of an interruption.
        self._to_score = self._is_scored_at(self._start) and not any(
            (record["step"], record["split"]) == (self._start, "validation")
            for record in opened.records
        )
        if self._writes:
            save_vocabulary(opened.vocabulary, self._model_dir / "vocabulary")
            if self._config.config_gin is not None:
                write_whole(self._model_dir / "config.gin", self._config.config_gin)
            self._writer = MetricsWriter(self._model_dir, start_step=self._start)
            stack.callback(self._writer.close)
        self._state = with_chosen_parameters(opened)
        self._profile = StepProfile(
            self._model_dir / "profile",
            self._config.profile_steps if self._writes else None,
            say=self._progress.say,
        )
        stack.callback(self._profile.close)
        self._timer = StepTimer()

    @property
    def _waited_enough(self) -> bool:
        return self._best is not None and self._best.exhausted

    def _already_done(self) -> dict[str, float]:
        """The metrics of a finished run; makes up for a missing summary."""
        end = f"this run ends at step {self._config.steps}"
        if self._start < self._config.steps:
            end = "it ended there, without improvement in the last PATIENCE evaluations"
        where = f"{self._config.model_dir} is at step {self._start}"
        self._progress.say(f"nothing to do: {where}; {end}")
        summary = read_summary(self._model_dir)
        if summary is not None and summary["step"] == self._start:
            return summary["metrics"]
        split = "validation" if self._evaluate else "train"
        values: dict[str, float] = {}
        for record in read_metrics(self._model_dir):
            if (record.pop("step"), record.pop("split")) == (self._start, split):
                values = record
        if not values and self._evaluate:
            values, _ = self._score(self._start)
        self._finish(self._start, values)
        return values

    def _train(self, interrupted: Interrupts) -> dict[str, float]:
        """Run the remaining steps; returns the last metrics."""
        config, total = self._config, self._config.steps
        train_step = self._compile()
        self._goodput.stepping()
        guard = Safeguard(
            config.safety,
            self._state,
            self._program.layout,
            self._checkpoints,
            writer=self._writer,
            say=self._progress.say,
        )
        if self._to_score:
            self._score(self._start)
        for step in range(self._start + 1, total + 1):
            metrics = self._step(train_step, step)
            guard.skips.dispatched(step, metrics)
            # Metrics are read one step late, when the devices already have their next work.
            self._read()
            # Rollbacks and saves, except an interruption's, depend only on the steps, so a resumed
            # run does the same.
            logged = (step - 1) % config.log_every == 0
            if logged:
                self._state = guard.heal(self._state, step, upto=step - 1)
            if step % config.log_every == 0 or step == total:
                self._unread = (step, metrics)
            pause = _Pause(
                evaluate=self._is_scored_at(step),
                save=step % config.checkpoint.every == 0
                or (logged and self._checkpoints.overdue(step)),
                end_profile=self._profile.ends_at(step),
                stop=interrupted.after(step) and step < total,
                last=step == total,
            )
            if not any(dataclasses.astuple(pause)):
                continue
            saved = self._pause(step, pause, guard)
            if self._waited_enough:
                assert config.best is not None
                self._progress.say(
                    f"stopping at step {step}: {config.best.patience} evaluations without a better "
                    f"{config.best.metric}"
                )
                break
            if pause.stop:
                self._stop(step, interrupted, saved=saved)
        return self._values

    def _compile(self) -> CompiledProgram:
        """The train step, compiled while the run was opened; now the evaluation step begins."""
        doing("compiling", watched=False)
        with self._goodput.part("compile"):
            train_step = self._compilation.result()
        self._progress.say(f"training step {train_step}")
        if self._evaluate:
            self._evaluate.compile_ahead()
        return train_step

    def _step(self, train_step: CompiledProgram, step: int) -> dict[str, Mean]:
        """Dispatch one step; returns its metrics, still on their way from the devices."""
        with self._profile.step(step):
            doing(f"waiting for the data of step {step}")
            with self._timer.part("data_wait"), self._goodput.data_wait(self._timer.idle):
                batch = next(self._feed)
            doing(f"step {step}")
            with self._timer.part("dispatch"):
                self._state, metrics = train_step.call(self._state, batch)
        self._timer.dispatched(metrics["tokens"])
        return metrics

    def _read(self) -> None:
        """Log the metrics of the step before, and the end of the evaluation's compilation."""
        if self._unread is not None:
            self._values = self._log(*self._unread)
            self._unread = None
        if self._evaluate and (compiled := self._evaluate.newly_compiled()):
            self._progress.say(f"evaluation step {compiled}")

    def _pause(self, step: int, pause: _Pause, guard: Safeguard) -> bool:
        """Evaluate and save as due; returns whether it saved."""
        self._timer.finish()
        self._read()
        with self._timer.paused():
            if pause.end_profile:
                self._profile.close()
            if pause.evaluate or pause.save or pause.last:
                self._state = guard.heal(self._state, step, upto=step, check=True)
            else:
                guard.note(step)
            best_metrics = None
            # Early stopping needs its evaluation; others are made up for later.
            if pause.evaluate and (self._best or not pause.stop):
                best_metrics = self._compare(step)
            # While updates are being skipped there is nothing new to save.
            due = pause.save and not guard.skips.in_a_row
            regular = bool(due or pause.last or best_metrics or self._waited_enough)
            saved = regular or (pause.stop and guard.is_finite(self._state))
            if saved:
                doing(f"saving step {step}")
                self._save(step, best_metrics, interrupted=not regular)
        return saved

    def _compare(self, step: int) -> dict[str, float] | None:
        """Score the model; returns the best checkpoint's metric if this is the best so far."""
        self._values, outputs = self._score(step)
        best_metrics = None
        best = self._config.best
        if best and self._best and self._best.add(step, self._values):
            best_metrics = {best.metric: self._values[best.metric]}
        if best_metrics or (self._best is None and step == self._config.steps):
            self._draw(step, outputs)
        return best_metrics

    def _stop(self, step: int, interrupted: Interrupts, *, saved: bool) -> NoReturn:
        """End the run after `step`; if `saved`, its checkpoint is being written."""
        self._progress.say(
            f"interrupted: saving the checkpoint of step {step}"
            if saved
            else f"interrupted: step {step} is not saved, its parameters are not finite"
        )
        self._checkpoints.finish()
        raise interrupted.error(step, saved=self._checkpoints.latest_step() == step)

    def _is_scored_at(self, step: int) -> bool:
        if self._evaluate is None or step == 0:
            return False
        return step % self._config.eval_every == 0 or step == self._config.steps

    def _log(self, step: int, metrics: dict[str, Mean]) -> dict[str, float]:
        values = summarize_metrics(self._config.objectives, add([metrics]))
        values.pop("tokens")
        values |= self._timer.read()
        self._goodput.reached(step)
        if self._writer:
            doing(f"writing the metrics of step {step}")
            self._writer.write(step, "train", values)
        self._progress.update(step, values)
        return values

    def _score(self, step: int) -> tuple[dict[str, float], Outputs]:
        assert self._evaluate is not None
        doing(f"evaluating step {step}")
        with self._goodput.part("evaluation"):
            values, outputs = self._evaluate.scored(self._model_params())
        if self._writer:
            self._writer.write(step, "validation", values)
        shown = "  ".join(
            f"{k} {v:.4g}" for k, v in values.items() if not k.endswith("pad_fraction")
        )
        self._progress.say(f"validation at step {step}: {shown}")
        return values, outputs

    def _save(self, step: int, best_metrics: dict[str, float] | None, *, interrupted: bool) -> None:
        with self._goodput.part("save"):
            self._checkpoints.save(
                self._state,
                self._feed,
                best_metrics=best_metrics,
                interrupted=interrupted,
                before=self._writer.sync if self._writer else None,
            )
        if self._best is not None:
            self._best.keep_stored(self._checkpoints.steps())
        self._goodput.write()
        if self._writer:
            self._writer.write_scalars(step, self._goodput.scalars())

    def _draw(self, step: int, outputs: Outputs) -> None:
        """The confusion matrix of the kept model, if it is a classifier."""
        data = self._config.eval_data
        if self._writer is not None and data is not None and outputs:
            draw_confusion(
                data, outputs, self._model_dir, self._writer, step, say=self._progress.say
            )

    def _model_params(self) -> Any:
        """The model's effective parameters."""
        return self._state.params if self._merge is None else self._merge(self._state.params)

    @functools.cached_property
    def _merge(self) -> Callable[[Any], Any] | None:
        """A function that merges LoRA into the model's shardings; None without LoRA."""
        lora = self._config.techniques.lora
        if lora is None:
            return None
        shardings = {k: v for k, v in self._program.layout.shardings.params.items() if k != LORA}
        merge: Callable[[Any], Any] = jax.jit(lora.merge, out_shardings=shardings)
        return merge

    def _finish(self, step: int, values: dict[str, float]) -> None:
        counts = self._feed.counts()
        if line := what_was_dropped(counts.get("dropped", {})):
            self._progress.say(line)
        if self._writes:
            kinds = {kind: counts.get(kind, {}) for kind in ("dropped", "changed")}
            best = {}
            if self._best is not None:
                best = {"best": {"step": self._best.step, "metrics": self._best.metrics}}
            goodput = {"goodput": self._goodput.summary()}
            with writing("summary.json"):
                write_summary(
                    self._model_dir, {"step": step, "metrics": values, **best, **kinds, **goodput}
                )
