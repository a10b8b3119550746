"""Compiles our equivalents of published runs, for `plug_jax/planning/calibration.json`.

    python benchmarks/calibration.py                # those that have no row yet
    python benchmarks/calibration.py v5e-16b ...    # these, anew

Each is one `plug-jax plan`, of some minutes on one core, in a process of its own; its row is
written as it comes, so an interrupted job goes on.

A published model has gated MLPs (three matrices), we have two: as much wider ours are. Where
several queries share keys, ours do not; the MLP is narrower by as much. So parameters, FLOPs and
attention of a layer are the same. Settings: MaxText's repository (configs/tpu, benchmarks) and
tpu-recipes, as of 2026.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from plug_jax.atomic_files import write_whole
from plug_jax.planning.topologies import parse_topology

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "plug_jax" / "planning" / "calibration.json"
CONFIGS = "maxtext/src/maxtext/configs/tpu/"
TRILLIUM = "tpu-recipes/training/trillium/"
IRONWOOD = "tpu-recipes/training/ironwood/README.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int = 32_000
    head_dim: int = 128
    gated: bool = True

    @property
    def our_mlp(self) -> int:
        """The width of two matrices with the FLOPs of the three, less what shared keys spare."""
        width = 3 * self.mlp // 2 if self.gated else self.mlp
        return width - (self.heads - self.kv_heads) * self.head_dim

    @property
    def our_vocabulary(self) -> int:
        """Ours gathers the table in float32, which is too much of a wide model's 128,256 rows."""
        return self.vocabulary if self.hidden < 8192 else 32_000

    @property
    def matmul_parameters(self) -> int:
        """Without the embedding, which is a lookup."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + (3 if self.gated else 2) * self.hidden * self.mlp
        return self.layers * layer + self.hidden * self.vocabulary

    def flops_a_token(self, length: int, *, causal: bool) -> int:
        """Of training, with all pairs of tokens, as MaxText counted up to 2025, or half of them."""
        pairs = length // 2 if causal else length
        attention = 12 * self.layers * self.heads * self.head_dim * pairs
        return 6 * self.matmul_parameters + attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A published run: `tokens` a second and chip, or `tflops` a chip that count all pairs."""

    model: Model
    topology: str
    length: int
    rows: int  # a chip
    tensor: int = 1
    remat: str  # as we say it
    source: str
    differs: str  # ours from theirs, besides MLP, keys, tied embeddings and compiler options
    tflops: float | None = None
    tokens: float | None = None
    keeps: tuple[str, ...] = ()  # what theirs saves of "query", "keys" where ours saves no qkv

    @property
    def mfu(self) -> float:
        """As `plug-jax plan` counts it."""
        tokens = self.tokens
        if tokens is None:
            assert self.tflops is not None
            tokens = 1e12 * self.tflops / self.model.flops_a_token(self.length, causal=False)
        flops = tokens * self.model.flops_a_token(self.length, causal=True)
        return flops / parse_topology(self.topology).chip.peak_flops

    @property
    def more_recomputed(self) -> int:
        """Parameters through which theirs goes once more than ours, in the backward pass.

        Of three matrices of an MLP two are computed again where one of our two is.
        """
        model, saved = self.model, self.remat.partition("=")[2].split(",")
        columns = 0
        if "wi" not in saved and model.gated:
            columns += 2 * model.mlp - model.our_mlp
        if "qkv" not in saved:
            query = 0 if "query" in self.keeps else model.heads
            keys = 0 if "keys" in self.keeps else 2 * model.kv_heads
            columns += (query + keys - 3 * model.heads) * model.head_dim
        return model.layers * model.hidden * columns


_BASE = {"hidden": 8192, "heads": 64, "kv_heads": 64, "mlp": 28_672}
M16 = Model(layers=32, **_BASE | {"hidden": 4096})
M32 = Model(layers=32, **_BASE)
M64 = Model(layers=64, **_BASE)
M128 = Model(layers=64, hidden=8192, heads=128, kv_heads=128, mlp=57_344)
# As MaxText's models were when these were published: 22B and 52B are no others.
_FIRST = {"head_dim": 256, "gated": False}
M22 = Model(layers=48, hidden=6144, heads=24, kv_heads=24, mlp=24_576, **_FIRST)
M52 = Model(layers=32, hidden=12_288, heads=32, kv_heads=32, mlp=49_152, **_FIRST)
LLAMA2_70B = Model(layers=80, hidden=8192, heads=64, kv_heads=8, mlp=28_672)
LLAMA3_70B = dataclasses.replace(LLAMA2_70B, vocabulary=128_256)
LLAMA3_8B = Model(layers=32, hidden=4096, heads=32, kv_heads=8, mlp=14_336, vocabulary=128_256)
LLAMA3_405B = Model(
    layers=126, hidden=16_384, heads=128, kv_heads=8, mlp=53_248, vocabulary=128_256
)

RUNS = {
    "v4-22b": Run(
        model=M22,
        topology="v4:4x4x4",
        length=2048,
        rows=13,
        remat="full",
        tflops=156,
        source=CONFIGS + "v4",
        differs="",
    ),
    "v4-52b": Run(
        model=M52,
        topology="v4:4x4x12",
        length=2048,
        rows=7,
        remat="full",
        tflops=154,
        source=CONFIGS + "v4",
        differs="",
    ),
    "v5e-16b": Run(
        model=M16,
        topology="v5e:16x16",
        length=2048,
        rows=6,
        remat="full",
        tflops=120,
        source=CONFIGS + "v5e",
        differs="",
    ),
    "v5e-32b": Run(
        model=M32,
        topology="v5e:16x16",
        length=2048,
        rows=4,
        remat="full",
        tflops=132,
        source=CONFIGS + "v5e",
        differs="",
    ),
    "v5e-64b": Run(
        model=M64,
        topology="v5e:16x16",
        length=2048,
        rows=2,
        remat="full",
        tflops=118,
        source=CONFIGS + "v5e",
        differs="",
    ),
    "v5e-128b": Run(
        model=M128,
        topology="v5e:16x16",
        length=2048,
        rows=1,
        tensor=16,
        remat="offload=qkv",
        tflops=110,
        source=CONFIGS + "v5e",
        differs="",
    ),
    "v5p-32b": Run(
        model=M32,
        topology="v5p:4x4x4",
        length=2048,
        rows=6,
        tensor=4,
        remat="names=qkv,out,wi",
        tflops=328,
        source=CONFIGS + "v5p",
        differs="",
    ),
    "v5p-64b": Run(
        model=M64,
        topology="v5p:4x4x4",
        length=2048,
        rows=3,
        tensor=4,
        remat="names=qkv,out,wi",
        tflops=323,
        source=CONFIGS + "v5p",
        differs="",
    ),
    "v5p-128b": Run(
        model=M128,
        topology="v5p:4x4x8",
        length=2048,
        rows=1,
        tensor=8,
        remat="names=qkv,out,wi",
        tflops=315,
        source=CONFIGS + "v5p",
        differs="",
    ),
    "v5p-128b-256": Run(
        model=M128,
        topology="v5p:4x8x8",
        length=2048,
        rows=1,
        tensor=8,
        remat="names=qkv,out,wi",
        tflops=316,
        source=CONFIGS + "v5p",
        differs="",
    ),
    "v5p-llama2-70b-512": Run(
        model=LLAMA2_70B,
        topology="v5p:8x8x8",
        length=4096,
        rows=4,
        remat="names=out",
        tokens=692,
        source="maxtext/docs/reference/models/tiering.md",
        keeps=("query", "keys"),
        differs="theirs saves queries, keys and values, for which three times the keys leave no "
        "room",
    ),
    "v5p-256b": Run(
        model=dataclasses.replace(M128, hidden=16_384),
        topology="v5p:8x8x8",
        length=2048,
        rows=1,
        tensor=8,
        remat="names=qkv,out,wi",
        tflops=308,
        source=CONFIGS + "v5p",
        differs="",
    ),
    "v5p-405b-512": Run(
        model=LLAMA3_405B,
        topology="v5p:8x8x8",
        length=8192,
        rows=2,
        remat="offload=context",
        tokens=124.618,
        source="tpu-recipes/training/v5p/Llama3.1-405B-MaxText",
        differs="theirs takes the MLP's output to the host as well",
    ),
    "v6e-8b-8": Run(
        model=LLAMA3_8B,
        topology="v6e:2x4",
        length=8192,
        rows=3,
        remat="offload=input,qkv,out",
        tokens=7138.89,
        source=TRILLIUM + "Llama3.1-8B-MaxText/v6e-8",
        differs="twice the keys and values go to the host",
    ),
    "v6e-8b-256": Run(
        model=LLAMA3_8B,
        topology="v6e:16x16",
        length=8192,
        rows=4,
        remat="offload=input,qkv,out",
        tokens=7207.336,
        source=TRILLIUM + "Llama3.1-8B-MaxText/v6e-256",
        differs="twice the keys and values go to the host",
    ),
    "v6e-70b-64": Run(
        model=LLAMA3_70B,
        topology="v6e:8x8",
        length=8192,
        rows=2,
        remat="offload=input,qkv",
        tokens=876.736,
        source=TRILLIUM + "Llama3.1-70B-MaxText/v6e-64",
        differs="three times the keys and values go to the host",
    ),
    "v6e-70b-128": Run(
        model=LLAMA3_70B,
        topology="v6e:8x16",
        length=8192,
        rows=4,
        remat="offload=input,qkv",
        tokens=941.976,
        source=TRILLIUM + "Llama3.1-70B-MaxText/v6e-128",
        differs="three times the keys and values go to the host",
    ),
    "v6e-70b-256": Run(
        model=LLAMA3_70B,
        topology="v6e:16x16",
        length=8192,
        rows=3,
        remat="offload=input,qkv",
        tokens=960.248,
        source=TRILLIUM + "Llama3.1-70B-MaxText/v6e-256",
        differs="theirs has 5 rows a chip, ours 3: three times the keys and values go to the host, "
        "which has no room for more",
    ),
    "v6e-llama2-70b-256": Run(
        model=LLAMA2_70B,
        topology="v6e:16x16",
        length=4096,
        rows=2,
        remat="offload=qkv",
        tokens=905.021,
        source=TRILLIUM + "Llama2-70B-MaxText",
        differs="the recipe says 3 rows a chip, its log 2: ours has 2; three times the keys and "
        "values go to the host",
    ),
    "v7x-70b-64": Run(
        model=LLAMA3_70B,
        topology="v7x:4x4x4",
        length=8192,
        rows=4,
        remat="names=context",
        tokens=2686.98,
        source=IRONWOOD,
        keeps=("query", "keys"),
        differs="theirs saves queries, keys and values, for which three times the keys leave no "
        "room; Adam's mean in float32, not bfloat16",
    ),
    "v7x-405b-256": Run(
        model=LLAMA3_405B,
        topology="v7x:4x8x8",
        length=8192,
        rows=6,
        remat="offload=input",
        tokens=499.77,
        source=IRONWOOD,
        keeps=("keys",),
        differs="theirs keeps keys and values on the device and takes the MLP's output to the "
        "host; Adam's mean in float32, not bfloat16",
    ),
}
# On two slices.
for _name, _tflops in {"v5e-16b": 117, "v5e-32b": 128, "v5e-64b": 112, "v5e-128b": 110}.items():
    RUNS[f"{_name}-2"] = dataclasses.replace(
        RUNS[_name], topology="2*v5e:16x16", tflops=_tflops, differs=""
    )
# The mesh files, of which a row takes compiler options, attention and chunks of logits.
MESHES = {"v4": "v4_128", "v5e": "v5e_256", "v5p": "v5p_128", "v6e": "v6e_256", "v7x": "v6e_256"}


def arguments(run: Run) -> list[str]:
    """Of `plug-jax plan`."""
    model, topology = run.model, parse_topology(run.topology)
    policy, _, names = run.remat.partition("=")
    saved = tuple(names.split(",")) if names else ("qkv",)
    files = ["runs/palm_pretrain", "models/plug_27b", "models/decoder_alone"]
    config = {
        "hidden_size": model.hidden,
        "num_heads": model.heads,
        "head_dim": model.head_dim,
        "mlp_dim": model.our_mlp,
        "max_positions": run.length,
        "vocab_multiple": 256,
        "remat_policy": repr(policy),
        "remat_saved_names": repr(saved),
    }
    bindings = {
        "VOCAB_SIZE": model.our_vocabulary,
        "DECODER_LAYERS": model.layers,
        "DROPOUT_RATE": 0.0,
        "BATCH_SIZE": run.rows * topology.num_chips,
        "MICRO_BATCHES": 1,
        "LOSS_CHUNK": run.length // 16,
        "TASK_FEATURE_LENGTHS": {"encoder": run.length // 2, "decoder": run.length // 2},
        "partitioning.Partitioner.data": topology.slices,
        "partitioning.Partitioner.slices": topology.slices,
        "partitioning.Partitioner.fsdp": topology.num_devices // topology.slices // run.tensor,
        "partitioning.Partitioner.tensor": run.tensor,
        **{f"config.PlugConfig.{name}": value for name, value in config.items()},
    }
    if run.tensor > 1:
        bindings["partitioning.Partitioner.rules"] = (("activation_embed", "tensor"),)
    return [
        *(f"--gin_file={file}.gin" for file in (*files, f"mesh/{MESHES[topology.chip.name]}")),
        f"--topology={run.topology}",
        *(f"--gin.{name}={value}" for name, value in bindings.items()),
    ]


def row(name: str, speed: dict[str, Any]) -> dict[str, Any]:
    """A row of the file. `speed` is that of the plan."""
    run = RUNS[name]
    topology = parse_topology(run.topology)
    at_peak = speed["model_flops"] / topology.peak_flops
    tokens = run.rows * topology.num_chips * run.length
    more = 2 * tokens * run.more_recomputed / topology.peak_flops
    times = {
        term: speed["roofline"][term] / at_peak
        for term in ("compute", "hbm", "interconnect", "synchronous")
    }
    times["compute"] += more / at_peak
    return {
        "name": name,
        "topology": run.topology,
        "mfu": round(run.mfu, 4),
        "times": {term: round(time, 4) for term, time in times.items()},
        "source": run.source,
        "differs": run.differs,
    }


def main(names: list[str]) -> None:
    """Make rows: those of `names`, or those that are missing."""
    made = {row["name"]: row for row in json.loads(ROWS.read_text())} if ROWS.exists() else {}
    for name in names or [name for name in RUNS if name not in made]:
        print(name, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "plug_jax", "plan", "--json", *arguments(RUNS[name])],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        speed = json.loads(done.stdout)["speed"] if done.stdout else None
        if speed is None:
            print("  failed, or does not fit", flush=True)
            continue
        made[name] = row(name, speed)
        in_order = [made[name] for name in RUNS if name in made]
        write_whole(ROWS, json.dumps(in_order, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
