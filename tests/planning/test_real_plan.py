"""Real plans from the TPU compiler, for the smallest model and the 27B one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plug_jax.cli import main as dispatcher

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: extra `tpu`"
)


def arguments(*others, files):
    return ["plan", *(f"--gin_file={file}" for file in files), *others]


def run_plan(*arguments):
    """In a process of its own, as a user would."""
    run = subprocess.run(
        [sys.executable, "-m", "plug_jax", *arguments, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def collectives(plan):
    """(kind, mesh axes, type): (executions per step, bytes per step)."""
    found = {}
    for row in plan["speed"]["collectives"]:
        key = row["kind"], row["axes"], row["dtype"]
        times, size = found.get(key, (0, 0))
        found[key] = times + row["times"], size + row["bytes"]
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
def test_a_real_plan_of_tiny(capsys):
    """models/tiny, stage 2, 8 rows of 128 + 128 over 4 chips, the parameters over all of them."""
    run = arguments(
        "--topology=v5e:2x2",
        "--json",
        "--gin.partitioning.Partitioner.fsdp=4",
        "--gin.config.PlugConfig.scan_layers=True",
        "--gin.BATCH_SIZE=8",
        "--gin.TASK_FEATURE_LENGTHS={'encoder': 128, 'decoder': 128}",
        files=["runs/palm_pretrain.gin", "models/tiny.gin", "mesh/cpu1.gin"],
    )
    assert dispatcher.main(run) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    # 128 wide: a norm has 256, an MLP 131,712, self-attention and cross-attention 66,048 each.
    encoder = 2 * (66_048 + 131_712 + 2 * 256) + 256
    decoder = 2 * (2 * 66_048 + 131_712 + 3 * 256) + 256
    embeddings = (21_248 + 512 + 3) * 128 + 256
    heads = 128 * 128 + 128 + 256 + 21_248 + 128 * 3 + 3
    parameters = encoder + decoder + embeddings + heads
    assert plan["parameters"] == parameters
    memory = plan["memory"]
    # Everything has a dimension of 128 that is split in four, except the vocabulary's bias, the
    # sentence head's 3, and biases by head or of the hidden layer of the MLP.
    assert parameters < memory["parameters"] < 1.2 * parameters  # 4 bytes, over 4 chips
    # The moments of those too, except the 3 classes and the step counts.
    assert memory["optimizer"] == 2 * (parameters - 3 + 4 * 3) + 8
    state = memory["parameters"] + memory["optimizer"]
    assert state < memory["arguments"] < 1.2 * state  # with the batch and layout padding
    assert memory["peak"] == plan["hbm_needed"] < plan["hbm_available"]

    speed = plan["speed"]
    pairs = 2 * 128 * 128 + 2 * (128 * 128 // 2 + 128 * 128)
    tokens = 8 * 128
    forward = 2 * tokens * 2 * (4 * 128**2 + 2 * 128 * 512)
    forward += 2 * tokens * 2 * (8 * 128**2 + 2 * 128 * 512)
    forward += 4 * 128 * 8 * pairs
    forward += 2 * 8 * 32 * (128**2 + 128 * 21_128) + 2 * tokens * 128 * 21_128
    assert speed["model_flops"] == 3 * forward
    # The full causal square and the padded vocabulary.
    assert 1.0 < speed["executed_flops"] / speed["model_flops"] < 1.05
    assert speed["uncounted_loops"] == 0
    # Every matrix is gathered twice in bfloat16, before the forward and the backward pass, and the
    # embedding tables once as they are. Gradients are reduce-scattered, except those of
    # positions, of the 3 token types and of vectors, which are all-reduced. Replicated vectors
    # are updated in parts, and gathered once; an all-reduce assembles the vocabulary's
    # bias.
    matrices = 128 * 128 + 2 * (4 * 128**2 + 2 * 128 * 512) + 2 * (8 * 128**2 + 2 * 128 * 512)
    tables, small = (21_248 + 512 + 3) * 128, (512 + 3) * 128
    vectors = 2 * (3 * 128 + 512) + 2 * (6 * 128 + 512)
    assert collectives(plan) == {
        ("all-gather", "fsdp", "bf16"): (46, 2 * 2 * matrices),
        ("all-gather", "fsdp", "f32"): (9, 4 * (tables + vectors)),
        ("reduce-scatter", "fsdp", "f32"): (6, 4 * (matrices + tables - small)),
        ("all-reduce", "fsdp", "f32"): (16, 148_516 + 4 * (small + 21_248)),
        ("all-reduce", "fsdp", "s32"): (1, 20),
    }
    assert speed["roofline"]["overlapped"] <= speed["roofline"]["scheduled"]
    assert 0 < speed["mfu_scheduled"] <= speed["mfu_bound"] <= 1
    expected, (least, most) = speed["expected"], speed["expected_days"]
    assert 0 < expected["low"] < expected["mfu"] < expected["high"] <= speed["mfu_bound"]
    at_bound = speed["days"] * speed["mfu_bound"]
    assert least == pytest.approx(at_bound / expected["high"])
    assert most == pytest.approx(at_bound / expected["low"])


@pytest.mark.slow
@pytest.mark.long
def test_plug_27b_fits_a_v5p_128():
    plan = run_plan(
        *arguments(
            "--topology=v5p:4x4x4",
            files=["runs/palm_pretrain.gin", "models/plug_27b.gin", "mesh/v5p_128.gin"],
        )
    )
    assert plan["fits"] and plan["hbm_needed"] < plan["hbm_available"]
    assert 26.0e9 < plan["parameters"] < 26.1e9
    # Parameters over fsdp=16, replicated over data=4; AdamW's moments over all 64 chips.
    memory = plan["memory"]
    assert memory["parameters"] == pytest.approx(4 * plan["parameters"] / 16, rel=1e-2)
    assert memory["optimizer"] == pytest.approx(8 * plan["parameters"] / 64, rel=1e-2)
    assert plan["batch_size"] * sum(plan["lengths"].values()) > 2e6

    speed = plan["speed"]
    assert speed["uncounted_loops"] == 0
    assert speed["mfu_bound"] > 0.97  # 89.5% without 'wi' in remat_saved_names
    assert speed["mfu_scheduled"] > 0.92  # 94.1% with libtpu 0.0.42
    assert speed["roofline"]["hides_interconnect"]
    moved = {key: size for key, (_, size) in collectives(plan).items()}
    # In each of four micro-batches the matrices are gathered twice in bfloat16, before the forward
    # and the backward pass, and their gradients reduced once. Another gather would add a half.
    # The new parameters are gathered to the replicas once, in float32.
    matrices = 2 * 25.85e9
    assert moved["all-gather", "fsdp", "bf16"] == pytest.approx(4 * 2 * matrices, rel=0.01)
    assert moved["all-reduce", "data+fsdp", "bf16"] == pytest.approx(4 * matrices, rel=0.01)
    parts = 4 * plan["parameters"] / 16
    assert moved["all-gather", "data", "f32"] == pytest.approx(parts, rel=0.01)
    rest = sum(moved.values()) - 4 * matrices * (2 + 1) - parts
    assert rest < 0.02 * sum(moved.values())
