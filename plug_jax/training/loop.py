"""The training loop."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax

from plug_jax.atomic_files import write_whole
from plug_jax.data.vocabularies import save_vocabulary
from plug_jax.downstream.formats import Outputs
from plug_jax.hosts.activity import doing
from plug_jax.hosts.supervision import Start, tell
from plug_jax.hosts.watchdog import watched
from plug_jax.metrics import Mean, add
from plug_jax.objectives.composition import summarize_metrics
from plug_jax.techniques.lora import LORA
from plug_jax.training.checkpoint_format import PlainPath
from plug_jax.training.compilation import compile_program
from plug_jax.training.confusions import draw_confusion
from plug_jax.training.interrupts import Interrupts, interrupts
from plug_jax.training.model_dir import held
from plug_jax.training.opening import OpenRun, check_run, open_run, with_chosen_parameters
from plug_jax.training.profiling import StepProfile
from plug_jax.training.program import TrainConfig
from plug_jax.training.safeguard import Safeguard
from plug_jax.training.saving import writing
from plug_jax.training.timing import StepTimer
from plug_jax.training.writers import (
    MetricsWriter,
    read_metrics,
    read_summary,
    write_summary,
)


def train(config: TrainConfig) -> dict[str, float]:
    """Train to the end, from the newest checkpoint in MODEL_DIR if there is one.

    Ctrl-C, SIGTERM or a notice of maintenance end the run after the step under way with a
    checkpoint; the same command goes on from there, and gives the losses that an uninterrupted run
    would have given. A run that is done is left as it is.

    Returns:
        The last evaluation's metrics by name; without `eval_data`, the last step's.

    Raises:
        PlugError: configuration, data or checkpoint that do not fit each other; ModelDirInUse:
            another run writes in MODEL_DIR.
        Interrupted: after the checkpoint of an interrupted run is written.
    """
    with watched(config.watchdog, config.model_dir), contextlib.ExitStack() as stack:
        doing("starting", watched=False)
        stack.enter_context(held(PlainPath.of(config.model_dir)))
        return _Trainer(open_run(config, stack), stack).run()


class _Trainer:
    """The loop over a run's steps, and what is written of them."""

    def __init__(self, opened: OpenRun, stack: contextlib.ExitStack) -> None:
        self._config, self._program = opened.config, opened.program
        self._feed, self._evaluate = opened.feed, opened.evaluate
        self._checkpoints, self._best = opened.checkpoints, opened.best
        self._goodput, self._progress = opened.goodput, opened.progress
        self._state, self._start = opened.state, opened.step
        # Of several processes the first writes.
        self._writes = jax.process_index() == 0
        self._model_dir = PlainPath.of(opened.config.model_dir)
        self._writer: MetricsWriter | None = None
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
        """What is done once where steps are left; nothing is written before it is checked."""
        check_run(opened)
        self._goodput.resumed(self._start)
        # An evaluation that a run left out when it was interrupted.
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
            self._model_dir / "profile", self._config.profile_steps if self._writes else None
        )
        stack.callback(self._profile.close)
        self._timer = StepTimer()

    @property
    def _waited_enough(self) -> bool:
        return self._best is not None and self._best.exhausted

    def _already_done(self) -> dict[str, float]:
        """The metrics of a run that is at its end; makes up for a summary that was not written."""
        self._progress.say(f"nothing to do: {self._config.model_dir} is at step {self._start}")
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
        """The steps that are left; returns the last metrics."""
        config, total = self._config, self._config.steps
        with self._goodput.part("compile"):
            train_step = compile_program(self._program.lower)
            self._progress.say(f"training step {train_step}")
            if self._evaluate:
                self._progress.say(f"evaluation step {self._evaluate.compiled()}")
        self._goodput.stepping()
        guard = Safeguard(
            config.safety,
            self._state,
            self._program.layout,
            self._checkpoints,
            writer=self._writer,
            say=self._progress.say,
        )
        values: dict[str, float] = {}
        if self._to_score:
            self._score(self._start)
        to_log: tuple[int, dict[str, Mean]] | None = None
        for step in range(self._start + 1, total + 1):
            with self._profile.step(step):
                doing(f"waiting for the data of step {step}")
                with self._timer.part("data_wait"), self._goodput.data_wait(self._timer.idle):
                    batch = next(self._feed)
                doing(f"step {step}")
                with self._timer.part("dispatch"):
                    self._state, metrics = train_step.call(self._state, batch)
            self._timer.dispatched(metrics["tokens"])
            guard.skips.dispatched(step, metrics)
            # Metrics are read one step late: the devices already have their next work.
            if to_log is not None:
                values = self._log(*to_log)
                to_log = None
            # Where the run goes back, and what it saves but for an interruption, depends on the
            # steps alone: one that is resumed does the same.
            logged = (step - 1) % config.log_every == 0
            if logged:
                self._state = guard.heal(self._state, step, upto=step - 1)
            stop = interrupted.after(step) and step < total
            if step % config.log_every == 0 or step == total:
                to_log = (step, metrics)
            evaluate = self._is_scored_at(step)
            due = step % config.checkpoint.every == 0 or (
                logged and self._checkpoints.overdue(step)
            )
            save = due or step == total or stop
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
                if evaluate or due or step == total:
                    self._state = guard.heal(self._state, step, upto=step, check=True)
                else:
                    guard.note(step)
                best_metrics = None
                # What an early stop depends on is not left out; the rest is made up for.
                if evaluate and (self._best or not stop):
                    values, outputs = self._score(step)
                    if config.best and self._best and self._best.add(step, values):
                        best_metrics = {config.best.metric: values[config.best.metric]}
                    if best_metrics or (self._best is None and step == total):
                        self._draw(step, outputs)
                # While updates are skipped there is nothing new to save.
                due = due and not guard.skips.in_a_row
                regular = due or step == total or best_metrics or self._waited_enough
                saved = regular or (stop and guard.is_finite(self._state))
                if saved:
                    doing(f"saving step {step}")
                    self._save(step, best_metrics, interrupted=not regular)
            if self._waited_enough:
                assert config.best is not None
                self._progress.say(
                    f"stopping at step {step}: {config.best.patience} evaluations without a better "
                    f"{config.best.metric}"
                )
                break
            if stop:
                self._progress.say(
                    f"interrupted: saving the checkpoint of step {step}"
                    if saved
                    else f"interrupted: step {step} is not saved, its parameters are not finite"
                )
                self._checkpoints.finish()
                saved = self._checkpoints.latest_step() == step
                raise interrupted.error(step, saved=saved)
        return values

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
        """What the model that is kept confuses, if it tells labels apart."""
        data = self._config.eval_data
        if self._writer is not None and data is not None and outputs:
            draw_confusion(data, outputs, self._model_dir, self._writer, step)

    def _model_params(self) -> Any:
        """What the model computes with."""
        return self._state.params if self._merge is None else self._merge(self._state.params)

    @functools.cached_property
    def _merge(self) -> Callable[[Any], Any] | None:
        """Adds LoRA's products, into the shardings that the model wants; None without LoRA."""
        lora = self._config.techniques.lora
        if lora is None:
            return None
        shardings = {k: v for k, v in self._program.layout.shardings.params.items() if k != LORA}
        merge: Callable[[Any], Any] = jax.jit(lora.merge, out_shardings=shardings)
        return merge

    def _finish(self, step: int, values: dict[str, float]) -> None:
        counts = self._feed.counts()
        if drops := counts.get("dropped"):
            shown = ", ".join(f"{reason} {count:,}" for reason, count in drops.items())
            self._progress.say(f"dropped while reading: {shown}")
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
