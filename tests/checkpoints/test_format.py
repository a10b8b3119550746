"""Model metadata in a checkpoint."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from plug_jax.checkpoints import saved_model
from plug_jax.checkpoints.format import CHECKPOINTS, PlainPath, open_manager
from plug_jax.errors import PlugError
from tests import synthetic


def test_a_model_trained_with_splash_infers_with_dot(tmp_path: Path) -> None:
    """On machines without a TPU, for rows of any length."""
    config = synthetic.tiny_config(attention="splash", remat_saved_names=("wi",))
    metadata = {"plug_config": config.to_dict(), "vocabulary_fingerprint": ""}
    manager = open_manager(tmp_path / CHECKPOINTS, create=True)
    manager.save(3, args=ocp.args.Composite(metadata=ocp.args.JsonSave(metadata)))
    manager.close()
    saved = saved_model.open_checkpoint(tmp_path)
    assert saved.config == synthetic.tiny_config(attention="dot", remat_saved_names=("wi",))


NAMES = [
    "lr=[1e-4]",
    "[a-z]*?{b,c}!",
    " two  words ",
    "line\nbreak",
    "100%25#?x=1&y",
    "~",
    "-dash",
    "天.orbax-checkpoint-tmp-1",
    "a" * 255,
]


@pytest.mark.parametrize("name", NAMES)
def test_arrays_come_back_from_a_directory_of_any_name(tmp_path: Path, name: str) -> None:
    values = {"w": jax.device_put(jnp.arange(6.0).reshape(2, 3))}
    directory = tmp_path / name / CHECKPOINTS
    with open_manager(directory, create=True) as manager:
        manager.save(1, args=ocp.args.Composite(params=ocp.args.StandardSave(values)))
    with open_manager(directory) as manager:
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, values)
        args = ocp.args.Composite(params=ocp.args.StandardRestore(like))
        restored = manager.restore(1, args=args).params
    np.testing.assert_array_equal(restored["w"], values["w"])


def test_paths_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    bucket = PlainPath.of("gs://bucket/lr=[1]/run")
    assert os.fspath(bucket) == os.fspath(bucket.resolve()) == "gs://bucket/lr=[1]/run"
    assert os.fspath(bucket.parent / "~") == "gs://bucket/lr=[1]/~"
    assert os.fspath(PlainPath.of("~/run/")) == "/home/me/run"
    assert os.fspath(PlainPath.of("a/../b")) == os.fspath(tmp_path / "b")
    with pytest.raises(PlugError, match="is empty; the current directory is '.'"):
        PlainPath.of("")
    for name in ("gbk\udcce", "back\\slash"):
        with pytest.raises(PlugError, match="checkpoints cannot be in '.*(gbk|back).*; rename it"):
            PlainPath.of(name)


def test_the_directory_above_runs_names_them(tmp_path: Path) -> None:
    for name in ("stage2", "[1]", "other"):
        (tmp_path / "run*" / name / (CHECKPOINTS if name != "other" else "logs")).mkdir(
            parents=True
        )
    found = [str(tmp_path / "run*" / name) for name in ("[1]", "stage2")]
    with pytest.raises(PlugError) as caught:
        saved_model.open_checkpoint(tmp_path / "run*")
    assert str(caught.value).endswith(f"/checkpoints/<step>; there are {', '.join(found)}")
    with pytest.raises(PlugError, match=r"<step>$"):
        saved_model.open_checkpoint(tmp_path)
