"""Shardings of every (model, mesh) pair, as they were when somebody last looked at them.

After a change that is meant, write them anew and read the difference:

    python -m tests.planning.test_shardings
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from pathlib import Path

import jax
import pytest

from plug_jax.cli.plan import configure
from plug_jax.errors import PlugError
from plug_jax.planning.shardings import describe_shardings
from plug_jax.planning.topologies import (
    compile_only_devices,
    parse_topology,
    set_environment,
)
from plug_jax.training.program import train_program

GOLDEN = Path(__file__).parent / "shardings"
MODELS = ("tiny", "small", "base", "large", "xl", "plug_27b", "plug_200b")
MESHES = {
    "h100_8": None,  # no TPUs: eight CPU devices stand in for them
    "v4_128": "v4:4x4x4",
    "v5e_16": "v5e:4x4",
    "v5e_256": "v5e:16x16",
    "v5p_128": "v5p:4x4x4",
    "v5p_512": "v5p:4x8x8",
    "v5p_256_x2": "2*v5p:4x4x8",
    "v6e_256": "v6e:16x16",
    "v7x_64": "v7x:4x4x4",
}
TOO_SMALL = [("tiny", "v5e_256"), ("tiny", "v6e_256")]  # 128 wide, for fsdp=256
PAIRS = [(m, mesh) for m in MODELS for mesh in MESHES if (m, mesh) not in TOO_SMALL]
QUICK = [("plug_27b", mesh) for mesh in MESHES if mesh not in ("h100_8", "v5e_16")]


def shardings(model: str, mesh: str) -> str:
    """As JSON text, of stage 2, which has all that stage 1 has but its heads' labels."""
    files = ["runs/palm_pretrain.gin", f"models/{model}.gin", f"mesh/{mesh}.gin"]
    config = configure(files, [])
    topology = MESHES[mesh]
    devices = compile_only_devices(parse_topology(topology)) if topology else tuple(jax.devices())
    partitioner = dataclasses.replace(config.partitioner, devices=devices)
    with partitioner.context():
        program = train_program(dataclasses.replace(config, partitioner=partitioner))
        return json.dumps(describe_shardings(program), indent=1, sort_keys=True) + "\n"


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler's topologies: pip install '.[tpu]'")
    set_environment()


@pytest.mark.parametrize(
    ("model", "mesh"),
    [pytest.param(*pair, marks=[] if pair in QUICK else [pytest.mark.long]) for pair in PAIRS],
)
def test_shardings_are_as_before(model: str, mesh: str) -> None:
    path = GOLDEN / f"{model}-{mesh}.json"
    expected, found = path.read_text().splitlines(), shardings(model, mesh).splitlines()
    changes = [
        line
        for line in difflib.unified_diff(expected, found, "before", "now", lineterm="", n=0)
        if not line.startswith("@@")
    ]
    assert not changes, "\n".join(changes)


@pytest.mark.parametrize(("model", "mesh"), TOO_SMALL)
def test_meshes_that_are_too_large_for_a_model(model: str, mesh: str) -> None:
    with pytest.raises(PlugError, match="'embed' of 128 over fsdp = 256"):
        shardings(model, mesh)


@pytest.mark.parametrize("mesh", MESHES)
def test_no_chip_keeps_what_another_one_keeps(mesh: str) -> None:
    """27B parameters above 2M elements are sharded over fsdp; gradients over all chips."""
    golden = json.loads((GOLDEN / f"plug_27b-{mesh}.json").read_text())
    config = configure(["runs/palm_pretrain.gin", "models/plug_27b.gin", f"mesh/{mesh}.gin"], [])
    sizes = {axis: getattr(config.partitioner, axis) for axis in ("data", "fsdp", "tensor")}
    for path, text in golden["parameters"].items():
        if elements(text) > 2**21:
            assert "fsdp" in text, f"{path}: {text}"
    for path, text in golden["gradients"].items():
        if elements(text) > 2**20:  # fsdp=256 does not divide the biases of heads
            assert all(axis in text for axis, n in sizes.items() if n > 1), f"{path}: {text}"
    count = len(golden["parameters"])
    moments = [text for path, text in golden["optimizer"].items() if "count" not in path]
    narrow = " in bfloat16" if mesh == "h100_8" else ""
    assert moments == [f"{count} leaves, each as its gradient{narrow}"] * 2


def elements(text: str) -> int:
    return math.prod(map(int, text[text.index("[") + 1 : text.index("]")].split(",")))


def test_every_pair_has_its_file() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {"-".join(pair) for pair in PAIRS}


if __name__ == "__main__":
    set_environment()
    jax.config.update("jax_num_cpu_devices", 8)
    GOLDEN.mkdir(exist_ok=True)
    for pair in PAIRS:
        print(*pair, flush=True)
        (GOLDEN / f"{'-'.join(pair)}.json").write_text(shardings(*pair))
