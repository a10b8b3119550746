"""Finds where a step's numbers become non-finite, by module and by parameter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from plug_jax.metrics import Mean
from plug_jax.models.plug import PlugModel
from plug_jax.objectives import composition
from plug_jax.objectives.forward import Batch
from plug_jax.objectives.objective import Progress
from plug_jax.parameter_paths import STACK, by_path, in_stack
from plug_jax.techniques.passes import Passes
from plug_jax.training.program import TrainConfig, TrainProgram
from plug_jax.training.state import TrainState
from plug_jax.training.step import divided, loss_of

_NOTED = "numbers"


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Statistics of an array: numbers, non-finite numbers, and the largest |x|."""

    where: str  # a path, with the layer in gin's notation: encoder/layers:3/mlp
    size: int
    not_finite: int
    largest: float  # of the finite ones


@dataclasses.dataclass(frozen=True)
class StepNumbers:
    """Statistics of a step, each part in order of computation."""

    parameters: list[Numbers]
    forward: list[Numbers]  # module outputs, in the first pass over the batch
    losses: dict[str, float]  # the total, as "loss", and its terms
    gradients: list[Numbers]  # of trained parameters
    rows: list[int]  # rows of the batch in which the first non-finite module has such numbers

    @property
    def first(self) -> str | None:
        """Where the first non-finite number is; None if all are finite."""
        parts = {
            "the parameter": self.parameters,
            "the output of": self.forward,
            "the gradient of": self.gradients,
        }
        found = {
            kind: next((one.where for one in part if one.not_finite), None)
            for kind, part in parts.items()
        }
        terms = [name for name, value in self.losses.items() if not math.isfinite(value)]
        of_loss = f"the loss: {', '.join(terms)}" if terms else None
        order = [*list(found.items())[:2], ("", of_loss), *list(found.items())[2:]]
        return next((f"{kind} {where}".strip() for kind, where in order if where), None)


def numbers_of_step(
    config: TrainConfig, program: TrainProgram, state: TrainState, batch: Batch
) -> StepNumbers:
    """Statistics of the next step from `state` and `batch` [B, ...], within the mesh's context.

    Micro-batches are run one by one, up to the first with non-finite numbers. With FGM's two
    gradients, or several passes over the batch, the first one is analysed.
    """
    micro_batches = config.step.micro_batches
    order: list[str] = []
    analyse = jax.jit(
        _analysis(config, program, order), out_shardings=config.partitioner.replicated
    )
    for index in range(micro_batches):
        found = jax.device_get(analyse(state, batch, index))
        forward = {name: found["forward"][name] for name in order}
        numbers = StepNumbers(
            parameters=_listed(found["parameters"]),
            forward=_by_layers(_listed(forward)),
            losses={
                name: float(mean.total / max(mean.weight, 1))
                for name, mean in found["losses"].items()
            },
            gradients=_listed(found["gradients"]),
            rows=_rows(forward, index, micro_batches, len(next(iter(batch.values())))),
        )
        if any(one.not_finite for one in (*numbers.forward, *numbers.gradients)):
            break
    return numbers


def _analysis(config: TrainConfig, program: TrainProgram, order: list[str]) -> Callable[..., Any]:
    """(state, batch, micro-batch) -> `_counted` of everything, by part and path.

    Tracing it fills `order` with the paths of modules as they finish.
    """
    trained, micro_batches = program.layout.trained, config.step.micro_batches

    def analyse(state: TrainState, batch: Batch, index: jax.Array) -> dict[str, Any]:
        progress = Progress(state.step, config.steps)
        batch = composition.prepare(config.objectives, batch, progress)
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        weights = composition.objective_weights(config.objectives, batch)
        if micro_batches > 1:
            batch = jax.tree.map(lambda x: x[index], divided(batch, micro_batches))
            rng = jax.random.fold_in(rng, index)

        def loss(part: Any) -> tuple[jax.Array, Any]:
            params = config.techniques.model_params(trained.put(state.params, part))
            model = _Watched(program.model, order)
            passes = Passes(
                config.objectives,
                cast(PlugModel, model),
                params,
                batch,
                weights,
                config.step.loss_chunk,
            )
            total, metrics = loss_of(config.techniques, passes, rng)
            return total, (metrics | {"loss": Mean(total, jnp.ones(()))}, model.noted)

        grads, (metrics, noted) = jax.grad(loss, has_aux=True)(trained.take(state.params))
        grads = trained.put(jax.tree.map(jnp.zeros_like, state.params), grads)
        return {
            "parameters": _counted_by_path(state.params),
            "forward": noted,
            "losses": {name: mean for name, mean in metrics.items() if name.endswith("loss")},
            "gradients": _counted_by_path(grads),
        }

    return analyse


class _Watched:
    """A `PlugModel` whose modules record their numbers when it is applied."""

    def __init__(self, model: PlugModel, order: list[str]) -> None:
        self.config = model.config
        self.noted: dict[str, dict[str, jax.Array]] = {}
        self._model, self._order = model, order

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(self._note):
            given, noted = self._model.apply(variables, *args, mutable=["intermediates"], **kwargs)
        for path, values in flatten_dict(noted.get("intermediates", {}), sep="/").items():
            self.noted.setdefault(path.removesuffix(f"/{_NOTED}"), values[0])
        return given

    def _note(
        self, call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        given = call(*args, **kwargs)
        arrays = [x for x in jax.tree.leaves(given) if jnp.issubdtype(x.dtype, jnp.floating)]
        if context.method_name == "__call__" and context.module.path and arrays:
            context.module.sow("intermediates", _NOTED, _counted(arrays[0]))
            path = "/".join(context.module.path)
            if path not in self._order:
                self._order.append(path)
        return given


def _counted(x: jax.Array) -> dict[str, jax.Array]:
    """For each x[i]: numbers, non-finite numbers, and the largest finite |x|."""
    rest = tuple(range(1, x.ndim))
    finite = jnp.isfinite(x)
    return {
        "size": jnp.full(x.shape[:1], math.prod(x.shape[1:]), jnp.int32),
        "not_finite": jnp.sum(~finite, axis=rest),
        "largest": jnp.max(jnp.where(finite, jnp.abs(x), 0), axis=rest, initial=0),
    }


def _counted_by_path(tree: Any) -> dict[str, dict[str, jax.Array]]:
    """For each leaf, or each layer of a stack: [layers, 1], else [1, 1]."""

    def counted(path: str, leaf: jax.Array) -> dict[str, jax.Array]:
        layers = leaf if in_stack(path) else leaf[None]
        return {name: value[:, None] for name, value in _counted(layers).items()}

    return {path: counted(path, leaf) for path, leaf in by_path(tree).items()}


def _listed(counted: Mapping[str, Mapping[str, np.ndarray]]) -> list[Numbers]:
    """`counted` as a list; [layers, ...] each for stacks."""
    found = []
    for path, values in counted.items():
        before, stack, after = path.partition(STACK)
        layers = {name: value if stack else value[None] for name, value in values.items()}
        for layer in range(len(layers["size"])):
            where = f"{before}{stack}:{layer}{after}" if stack else path
            found.append(
                Numbers(
                    where,
                    int(layers["size"][layer].sum()),
                    int(layers["not_finite"][layer].sum()),
                    float(layers["largest"][layer].max()),
                )
            )
    return found


def _by_layers(numbers: list[Numbers]) -> list[Numbers]:
    """In order of computation: a stack layer by layer."""
    first: dict[str, int] = {}
    for place, one in enumerate(numbers):
        first.setdefault(one.where.partition(STACK)[0], place)

    def key(one: Numbers) -> tuple[int, int]:
        _, stack, after = one.where.partition(f"{STACK}:")
        return first[one.where.partition(STACK)[0]], int(after.partition("/")[0]) if stack else 0

    return sorted(numbers, key=key)


def _rows(
    forward: Mapping[str, Mapping[str, np.ndarray]], index: int, micro_batches: int, rows: int
) -> list[int]:
    """The batch rows in which the first non-finite module has non-finite numbers."""
    for path, values in forward.items():
        bad = values["not_finite"]
        bad = bad.sum(axis=0) if in_stack(path) else bad
        if bad.any():
            texts = max(1, len(bad) * micro_batches // rows)
            return sorted(
                {int(row) // texts * micro_batches + index for row in np.flatnonzero(bad)}
            )
    return []
