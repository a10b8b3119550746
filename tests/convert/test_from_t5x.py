"""Importing checkpoints written by t5x's train.py."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict

from plug_jax.checkpoints.parameters import init_params
from plug_jax.checkpoints.saved_model import load_for_inference, open_checkpoint
from plug_jax.cli.main import main
from plug_jax.convert.from_t5x import write_description
from plug_jax.data.vocabularies.vocabulary import load_vocabulary
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.composition import Objectives
from tests.objectives.toy_classification import ToyClassification
from tests.stored_model import write_vocabulary
from tests.synthetic import tiny_config


def write_run(directory, *, steps, objectives: Objectives = (), description=True):
    """A t5x MODEL_DIR; each step's parameters are random, with the step as the seed."""
    directory.mkdir(exist_ok=True)
    vocabulary = load_vocabulary(write_vocabulary(directory, 90))
    config = tiny_config(vocab_size=vocabulary.vocab_size)
    if description:
        write_description(directory, config, vocabulary)
    for step in steps:
        params = init_params(PlugModel(config), jax.random.key(step), objectives)
        state = {"target": params, "state": {"step": jnp.int32(step), "param_states": params}}
        ocp.PyTreeCheckpointer().save(directory / f"checkpoint_{step}" / "state", state)
    return config


def read(run, output):
    return main(["convert", "import-t5x", "--input", str(run), "--output", str(output)])


def expected(config, step, objectives: Objectives = ()):
    return flatten_dict(init_params(PlugModel(config), jax.random.key(step), objectives), sep="/")


def same(params, other):
    params = flatten_dict(params, sep="/")
    assert params.keys() == other.keys()
    for path, leaf in other.items():
        np.testing.assert_array_equal(params[path], leaf, err_msg=path)


def test_the_newest_is_taken_bit_by_bit(tmp_path, capsys):
    run = tmp_path / "t5x_run"
    config = write_run(run, steps=(9, 10))
    assert read(run, tmp_path / "out") == 0
    assert "2 + 2 layers, hidden 16" in capsys.readouterr().out
    found, params, vocabulary = load_for_inference(tmp_path / "out")
    assert found == dataclasses.replace(config, attention="dot")  # as for all inference
    assert vocabulary == load_vocabulary(run / "vocab.txt")
    same(params, expected(config, 10))
    assert open_checkpoint(tmp_path / "out").converted_from == {"layout": "t5x", "step": 10}


def test_one_of_them_with_the_head_of_an_objective(tmp_path):
    objectives = (ToyClassification(),)
    config = write_run(tmp_path / "run", steps=(9, 10), objectives=objectives)
    assert read(tmp_path / "run" / "checkpoint_9", tmp_path / "out") == 0
    _, params, _ = load_for_inference(tmp_path / "out", objectives=objectives)
    same(params, expected(config, 9, objectives))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("nothing there", "no checkpoint of t5x in"),
        ("no description", "plug_jax/config.json cannot be read"),
        ("another model", "has no pooler/"),
        ("output", "exists; remove it"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, capsys, spoil, message):
    run, output = tmp_path / "run", tmp_path / "out"
    config = write_run(
        run,
        steps=() if spoil == "nothing there" else (1,),
        description=spoil != "no description",
    )
    if spoil == "another model":
        wider = tiny_config(vocab_size=config.vocab_size, norm_placement="post", use_pooler=True)
        write_description(run, wider, load_vocabulary(run / "vocab.txt"))
    if spoil == "output":
        (output / "full").mkdir(parents=True)
    assert read(run, output) == 2
    assert message in capsys.readouterr().err
    assert output.exists() == (spoil == "output")
