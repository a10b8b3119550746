"""What comparing a checkpoint with its checksums adds to reading it, and checks to writing it.

python -m tests.reliability.restore_cost
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
import timeit
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from plug_jax.checkpoints.integrity import find_damage
from plug_jax.checkpoints.parameters import abstract_params
from plug_jax.models.plug import PlugModel
from plug_jax.training.checkpointing import CheckpointConfig, Checkpoints
from plug_jax.training.safety import all_finite
from plug_jax.training.state import StateLayout, TrainState
from tests.checkpoints.stored_run import NEW, Place, open_run, step_of
from tests.inference_model import CONFIG

MODEL = dataclasses.replace(CONFIG, hidden_size=512, num_heads=8, head_dim=64, mlp_dim=2048)
MODEL = dataclasses.replace(MODEL, num_encoder_layers=8, num_decoder_layers=5)
ROUNDS = 5


def measure(directory: Path) -> str:
    """Medians for params and two slots as in Adam, with files in the page cache."""
    shapes = nn.unbox(abstract_params(PlugModel(MODEL)))
    rng = np.random.default_rng(0)
    device = jax.devices()[0]

    def tree() -> dict:
        return jax.tree.map(
            lambda s: jax.device_put(rng.standard_normal(s.shape, np.float32), device), shapes
        )

    def run(*, verify: bool) -> Checkpoints:
        one = open_run(directory)
        one.close()
        return Checkpoints(
            directory,
            CheckpointConfig(every=1, verify=verify),
            model=MODEL,
            vocabulary=one._vocabulary,
        )

    state = TrainState(jax.numpy.int32(NEW), tree(), {"mu": tree(), "nu": tree()})
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
    sharding = jax.sharding.SingleDeviceSharding(device)
    layout = StateLayout(abstract, jax.tree.map(lambda _: sharding, abstract), None)
    check = jax.jit(all_finite).lower(state).compile()
    looking = min(timeit.repeat(lambda: check(state).block_until_ready(), number=1, repeat=ROUNDS))
    writing = run(verify=True)
    start = time.monotonic()
    writing.save(state, Place(NEW))
    writing.close()
    saving = time.monotonic() - start
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for verify, taken in seconds.items():
            reading = run(verify=verify)
            start = time.monotonic()
            jax.block_until_ready(reading.restore(layout, Place())[0])
            taken.append(time.monotonic() - start)
            reading.close()
    step = epath.Path(step_of(directory))
    start = time.monotonic()
    assert find_damage(step) is None
    hashing = time.monotonic() - start
    size = sum(path.stat().st_size for path in step_of(directory).rglob("*") if path.is_file())
    checked, plain = (statistics.median(seconds[verify]) for verify in (True, False))
    return (
        f"{size / 1e6:.0f} MB: saved in {saving:.2f} s; restored in {plain:.2f} s, with its "
        f"checksums compared in {checked:.2f} s ({checked / plain - 1:.0%} more); comparing alone "
        f"{hashing:.2f} s, {size / 1e6 / hashing:.0f} MB/s; looking for numbers that are not "
        f"finite before it is saved {looking * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(measure(Path(name)))
