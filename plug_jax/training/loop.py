"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import jax

from plug_jax import partitioning
from plug_jax.config import PlugConfig
from plug_jax.data import pipeline
from plug_jax.data.drops import drop_counts, reset_counts
from plug_jax.data.pipeline import DatasetConfig
from plug_jax.data.vocabularies import save_vocabulary
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner
from plug_jax.training import metrics as metrics_lib
from plug_jax.training import optimizer as optimizer_lib
from plug_jax.training.checkpointing import CheckpointConfig, Checkpoints, initialize_from
from plug_jax.training.evaluate import Evaluator, check_batch, check_vocabulary, open_batches
from plug_jax.training.metrics import Mean
from plug_jax.training.optimizer import OptimizerConfig
from plug_jax.training.state import init_state, state_layout
from plug_jax.training.step import StepConfig, make_train_step
from plug_jax.training.writers import MetricsWriter, ProgressReport


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run: what `plug-jax train` builds from its gin files."""

    model_dir: str
    model: PlugConfig
    train_data: DatasetConfig
    eval_data: DatasetConfig | None  # scored every `eval_every` steps and at the end
    partitioner: Partitioner
    optimizer: OptimizerConfig
    step: StepConfig
    checkpoint: CheckpointConfig
    train_steps: int
    eval_every: int
    log_every: int = 10
    seed: int = 0
    initial_checkpoint: str | None = None  # parameters to start from when MODEL_DIR has none

    def __post_init__(self) -> None:
        for name in ("train_steps", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise PlugError(f"TrainConfig.{name} must be 1 or more, got {getattr(self, name)}")


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
        task = config.train_data.mixture_or_task_name
        vocabulary = pipeline.vocabulary_of(task, module=config.train_data.module)
        check_vocabulary(config.model, vocabulary, task)
        partitioner = config.partitioner
        partitioner.check_batch(config.train_data.batch_size, config.step.micro_batches)
        stack.enter_context(partitioner.context())

        model = PlugModel(config.model)
        schedule = optimizer_lib.make_schedule(config.optimizer, config.train_steps)
        optimizer = optimizer_lib.make_optimizer(config.optimizer, schedule)
        layout = state_layout(model, optimizer, partitioner)
        reset_counts()  # of this process: an earlier run is not this one's
        self._batches = open_batches(config.train_data)
        self._evaluate = (
            Evaluator(config.model, config.eval_data, partitioner, config.step)
            if config.eval_data is not None
            else None
        )
        self._model_dir = Path(config.model_dir)
        self._model_dir.mkdir(parents=True, exist_ok=True)
        self._checkpoints = Checkpoints(
            self._model_dir, config.checkpoint, model=config.model, vocabulary=vocabulary
        )
        stack.callback(self._checkpoints.close)
        if self._checkpoints.latest_step() is not None:
            self._state = self._checkpoints.restore(layout, self._batches)
        else:
            self._state = init_state(model, optimizer, layout, seed=config.seed)
            if config.initial_checkpoint is not None:
                self._state = initialize_from(
                    config.initial_checkpoint, self._state, layout, vocabulary=vocabulary
                )
        self._train_step = jax.jit(
            make_train_step(
                model,
                optimizer,
                schedule,
                config.step,
                train_steps=config.train_steps,
                seed=config.seed,
            ),
            in_shardings=(layout.shardings, partitioner.batch_sharding),
            out_shardings=(layout.shardings, partitioner.replicated),
            donate_argnums=0,
        )
        self._start = int(self._state.step)
        self._writer: MetricsWriter | None = None
        if jax.process_index() == 0:  # one host writes logs
            save_vocabulary(vocabulary, self._model_dir / "vocabulary")
            self._writer = MetricsWriter(self._model_dir, start_step=self._start)
            stack.callback(self._writer.close)
        self._progress = stack.enter_context(
            ProgressReport("train", total=config.train_steps, start=self._start)
        )
        self._speed = _Speedometer()

    def run(self) -> dict[str, float]:
        """Train to the end; see `train`."""
        config, total = self._config, self._config.train_steps
        values: dict[str, float] = {}
        sharding = config.partitioner.batch_sharding
        to_log: tuple[int, dict[str, Mean]] | None = None
        with _interrupts() as interrupted:
            for step in range(self._start + 1, total + 1):
                batch = next(self._batches)
                check_batch(batch, config.model)
                self._state, metrics = self._train_step(
                    self._state, partitioning.put_batch(batch, sharding)
                )
                # Metrics are read one step late: the device already has its next work.
                if to_log is not None:
                    values = self._log(*to_log)
                    to_log = None
                self._speed.add(metrics["tokens"])
                stop = interrupted() and step < total
                if step % config.log_every == 0 or step == total or stop:
                    to_log = (step, metrics)
                evaluate = self._evaluate and (step % config.eval_every == 0 or step == total)
                save = step % config.checkpoint.every == 0 or step == total or stop
                if not (evaluate or save):
                    continue
                if to_log is not None:
                    values = self._log(*to_log)
                    to_log = None
                with self._speed.paused():
                    if evaluate and not stop:
                        values = self._score(step)
                    if save:
                        self._checkpoints.save(self._state, self._batches)
                if stop:
                    self._progress.say(f"interrupted: saving the checkpoint of step {step}")
                    raise KeyboardInterrupt
        if self._start >= total:
            self._progress.say(f"nothing to do: {config.model_dir} is at step {self._start}")
            values = self._score(self._start) if self._evaluate else {}
        self._finish(values)
        return values

    def _log(self, step: int, metrics: dict[str, Mean]) -> dict[str, float]:
        values = metrics_lib.summarize(metrics_lib.add([metrics]))
        values.pop("tokens")
        values["tokens_per_second"] = self._speed.tokens_per_second()
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
        drops = drop_counts()
        if drops:
            counts = ", ".join(f"{reason} {count:,}" for reason, count in sorted(drops.items()))
            self._progress.say(f"dropped while reading: {counts}")
        if jax.process_index() == 0:
            summary = {"step": self._config.train_steps, "metrics": values, "dropped": drops}
            path = self._model_dir / "summary.json"
            path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


class _Speedometer:
    """Real tokens a second since the last reading, without compilation and pauses."""

    def __init__(self) -> None:
        self._tokens: list[Mean] = []
        self._since: float | None = None

    def add(self, tokens: Mean) -> None:
        """Count a step's tokens; the first step only starts the clock, when it is done."""
        if self._since is None:
            jax.block_until_ready(tokens)
            self._since = time.monotonic()
        else:
            self._tokens.append(tokens)
            if len(self._tokens) > 1:  # at most one step is under way while another is prepared
                jax.block_until_ready(self._tokens[-2])

    def tokens_per_second(self) -> float:
        """Since the last call; 0 before a second step is done."""
        if self._since is None or not self._tokens:
            return 0.0
        tokens = sum(float(t.total) for t in jax.device_get(self._tokens))
        now = time.monotonic()
        rate = tokens / max(now - self._since, 1e-9)
        self._tokens, self._since = [], now
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent within does not count."""
        jax.block_until_ready(self._tokens)
        started = time.monotonic()
        yield
        if self._since is not None:
            self._since += time.monotonic() - started


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGINT or SIGTERM came; a second one is not held back."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals reach the main thread only
        return
    came = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        came.set()
        signal.signal(number, previous[signal.Signals(number)])

    previous = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
