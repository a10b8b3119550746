"""The operations of a small model's train step on a CPU, one by one: XLA's beside PyTorch's.

    taskset -c 0 python benchmarks/cpu_operations.py
    taskset -c 0 python benchmarks/cpu_operations.py --width 128

Each is the smallest program that shows where XLA's CPU backend is slower or faster than PyTorch:
in float32, in the sizes of an encoder layer over 4 rows of 512 tokens, and of the output layer over
768 predictions of 21,128 pieces. Times are of the CPU, so on several cores they are sums; rounds of
both alternate. Memory is kept as `plug-jax` keeps it (plug_jax/malloc_tunables.py). Needs PyTorch
(`pip install 'plug-jax[convert]'`).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.nn import functional

from plug_jax.cpu_cores import cores
from plug_jax.losses import score
from plug_jax.malloc_tunables import with_tunables
from plug_jax.ops.attention import dot_product_attention
from plug_jax.ops.dropout import dropout
from plug_jax.ops.gelu import gelu
from plug_jax.ops.linear import add_bias, linear

HEAD_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the step."""

    width: int
    rows: int = 4
    length: int = 512
    predictions: int = 768
    pieces: int = 21_128


@dataclasses.dataclass(frozen=True)
class Operation:
    """The same in both; each call does it once, to its end."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]


def operations(sizes: Sizes) -> Iterator[Operation]:
    """Of a layer, of the output layer, and of the optimizer, in the order of a step."""
    tokens, width = sizes.rows * sizes.length, sizes.width
    yield _differentiated(
        "LayerNorm",
        lambda x: nn.LayerNorm(use_fast_variance=False, use_scale=False, use_bias=False).apply(
            {}, x
        ),
        lambda x: functional.layer_norm(x, x.shape[-1:]),
        (tokens, width),
    )
    yield _projection("queries, keys, values", tokens, width, 3 * width)
    yield _attention(sizes)
    yield _differentiated(
        "dropout of its weights",
        lambda weights: dropout(weights, 0.1, jax.random.key(0)),
        lambda weights: functional.dropout(weights, 0.1),
        (sizes.rows, width // HEAD_SIZE, sizes.length, sizes.length),
    )
    yield _projection("attention's output", tokens, width, width)
    yield _projection("MLP's first", tokens, width, 4 * width)
    yield _differentiated("GELU", gelu, functional.gelu, (tokens, 4 * width))
    yield _projection("MLP's second", tokens, 4 * width, width)
    yield _differentiated(
        "logits",
        lambda x, table, bias: add_bias(linear(x, table, (((1,), (1,)), ((), ()))), bias),
        functional.linear,
        (sizes.predictions, width),
        (sizes.pieces, width),
        (sizes.pieces,),
    )
    yield _cross_entropy(sizes)
    yield _adamw((sizes.pieces, width))


def _differentiated(
    name: str,
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    *shapes: tuple[int, ...],
) -> Operation:
    """Forward and backward, of float32 arrays to one, from a random gradient of that."""
    random = np.random.default_rng(0)
    arrays = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    gradient = random.normal(size=theirs(*tensors).shape).astype(np.float32)

    @jax.jit
    def both_ways(gradient: jax.Array, *arrays: jax.Array) -> Any:
        value, backward = jax.vjp(ours, *arrays)
        return value, backward(gradient)

    inputs = [jnp.array(array) for array in (gradient, *arrays)]
    of_value = torch.tensor(gradient)

    def torch_both_ways() -> Any:
        value = theirs(*tensors)
        return value, torch.autograd.grad(value, tensors, of_value)

    return Operation(name, lambda: jax.block_until_ready(both_ways(*inputs)), torch_both_ways)


def _projection(name: str, tokens: int, inputs: int, features: int) -> Operation:
    return _differentiated(
        f"{name} matmul",
        lambda x, weight, bias: linear(x, weight, (((1,), (0,)), ((), ()))) + bias,
        lambda x, weight, bias: functional.linear(x, weight.T, bias),
        (tokens, inputs),
        (inputs, features),
        (features,),
    )


def _attention(sizes: Sizes) -> Operation:
    """Of rows that hold two examples each."""
    shape = sizes.rows, sizes.length, sizes.width // HEAD_SIZE, HEAD_SIZE
    example = np.arange(sizes.length) // (sizes.length // 2)
    allowed = np.broadcast_to(
        example[:, None] == example, (sizes.rows, 1, sizes.length, sizes.length)
    )
    mask, torch_mask = jnp.array(allowed), torch.tensor(allowed)
    return _differentiated(
        "attention",
        lambda q, k, v: dot_product_attention(q, k, v, mask=mask),
        lambda *qkv: functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in qkv), attn_mask=torch_mask
        ).transpose(1, 2),
        *(shape,) * 3,
    )


def _cross_entropy(sizes: Sizes) -> Operation:
    numbers = np.random.default_rng(1).integers(0, sizes.pieces, sizes.predictions)
    labels, torch_labels = jnp.array(numbers), torch.tensor(numbers)
    return _differentiated(
        "cross-entropy",
        lambda logits: score(logits, labels).losses,
        lambda logits: functional.cross_entropy(logits, torch_labels, reduction="none"),
        (sizes.predictions, sizes.pieces),
    )


def _adamw(shape: tuple[int, ...]) -> Operation:
    """One update of the word embeddings, clipped by their gradient's norm."""
    value, gradient = np.random.default_rng(2).normal(size=(2, *shape)).astype(np.float32)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4))

    def update(state: Any, gradient: jax.Array) -> Any:
        params, moments = state
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments

    update = jax.jit(update, donate_argnums=0)
    params = jnp.array(value)
    state, of_params = [(params, optimizer.init(params))], jnp.array(gradient)

    def ours() -> jax.Array:
        state[0] = jax.block_until_ready(update(state[0], of_params))
        return state[0][0]

    leaf = torch.tensor(value, requires_grad=True)
    leaf.grad = torch.tensor(gradient)
    torch_optimizer = torch.optim.AdamW([leaf], lr=1e-4, fused=True)

    def theirs() -> torch.Tensor:
        torch.nn.utils.clip_grad_norm_([leaf], 1.0)
        torch_optimizer.step()
        return leaf

    return Operation("clipping, AdamW", ours, theirs)


def seconds(operation: Operation, rounds: int, round_seconds: float) -> tuple[float, float]:
    """Of one call of ours and of theirs: medians of rounds, which alternate."""
    times: dict[Callable[[], Any], list[float]] = {operation.ours: [], operation.theirs: []}
    for call in times:
        call()  # compiles
    for _ in range(rounds):
        for call, taken in times.items():
            calls, start = 0, time.process_time()
            while calls == 0 or time.process_time() - start < round_seconds:
                call()
                calls += 1
            taken.append((time.process_time() - start) / calls)
    ours, theirs = map(statistics.median, times.values())
    return ours, theirs


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--width", type=int, default=256, help="of the model (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    parser.add_argument(
        "--round_seconds", type=float, default=0.3, help="at least, of each (%(default)s)"
    )
    args = parser.parse_args()
    if args.width < HEAD_SIZE or args.width % HEAD_SIZE:
        parser.error(f"--width must be a multiple of {HEAD_SIZE}, not {args.width}")
    torch.set_num_threads(cores())
    print(f"width {args.width} | ours, ms | PyTorch, ms | our speed\n--- | ---: | ---: | ---:")
    for operation in operations(Sizes(args.width)):
        ours, theirs = seconds(operation, args.rounds, args.round_seconds)
        print(
            f"{operation.name} | {1000 * ours:.2f} | {1000 * theirs:.2f} | {theirs / ours:.2f} x",
            flush=True,
        )


if __name__ == "__main__":
    if (environment := with_tunables(os.environ)) is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    main()
