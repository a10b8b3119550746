"""Where everything of a train step lies on the mesh, before any device exists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.sharding import NamedSharding

from plug_jax.checkpoints.parameters import with_shardings
from plug_jax.training.program import TrainProgram


def describe_shardings(program: TrainProgram) -> dict[str, dict[str, str]]:
    """Global shape and spec of every leaf, by path, as text.

    `parameters`, `optimizer` and `batch` are what a step takes, `gradients` what it sums, those of
    micro-batches too; `activations` are the sharding constraints within it (an array's dtype, shape
    and spec, and how often they are asked for in a step). Call it within the partitioner's context.

    Example: {"parameters": {"encoder/final_norm/scale": "float32[8192] over (fsdp)"}, ...}
    """
    traced = program.train_step.trace(program.layout.with_shardings(), program.batch)
    constraints: Counter[str] = Counter()
    for equation, times in _equations(traced.jaxpr.jaxpr):
        if equation.primitive.name == "sharding_constraint":
            aval, sharding = equation.outvars[0].aval, equation.params["sharding"]
            constraints[_describe(aval, sharding)] += times
    abstract = program.layout.with_shardings()
    gradients = _by_path(with_shardings(abstract.params, program.layout.gradients))
    return {
        "parameters": _by_path(abstract.params),
        "gradients": gradients,
        "optimizer": _slots(_by_path(abstract.opt_state), gradients),
        "batch": _by_path(program.batch),
        "activations": {name: f"{times} times" for name, times in sorted(constraints.items())},
    }


def _equations(jaxpr: Jaxpr, times: int = 1) -> Iterator[tuple[JaxprEqn, int]]:
    """Every equation, those of loops and calls too, with how often it runs."""
    for equation in jaxpr.eqns:
        yield equation, times
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for sub in jaxprs_in_params(equation.params):
            yield from _equations(sub, times * length)


def _slots(slots: dict[str, str], gradients: dict[str, str]) -> dict[str, str]:
    """The optimizer's leaves; those just like the gradient they are for are only counted."""
    alike: Counter[tuple[str, str]] = Counter()
    others = {}
    for path, text in slots.items():
        name = next((name for name in gradients if path.endswith(f"/{name}")), "")
        dtype, _, where = text.partition("[")
        own_dtype, _, own = gradients.get(name, "").partition("[")
        if where == own:
            in_dtype = "" if dtype == own_dtype else f" in {dtype}"
            alike[path.removesuffix(name) + "*", in_dtype] += 1
        else:
            others[path] = text
    counted = {
        path: f"{times} leaves, each as its gradient{in_dtype}"
        for (path, in_dtype), times in alike.items()
    }
    return counted | others


def _by_path(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _describe(leaf, leaf.sharding)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _describe(leaf: Any, sharding: NamedSharding) -> str:
    axes = [
        "*" if names is None else names if isinstance(names, str) else "+".join(names)
        for names in (*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec)))
    ]
    return f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}] over ({', '.join(axes)})"
