"""Damaged checkpoints: what training, commands and users see."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from etils import epath

from plug_jax.checkpoints import checksums, declarations
from plug_jax.checkpoints.checksums import CHECKSUMS, write_checksums, write_part
from plug_jax.checkpoints.format import CHECKPOINTS, PlainPath, open_manager
from plug_jax.checkpoints.integrity import DamagedCheckpointError, find_damage
from plug_jax.cli.main import main
from plug_jax.errors import PlugError
from plug_jax.training.model_dir import ModelDirInUse, held
from tests.checkpoints.damages import damages, files_of, kind_of
from tests.checkpoints.stored_run import (
    NEW,
    OLD,
    arrays,
    open_run,
    read,
    resume,
    save,
    step_of,
    write_run,
)
from tests.stored_model import write_stored_model


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "run")


def largest(step: Path, item: str) -> Path:
    return max((step / item).rglob("d/*"), key=lambda path: path.stat().st_size)


def flip(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_a_whole_run_is_read(run: Path) -> None:
    assert find_damage(epath.Path(step_of(run))) is None
    assert resume(run) == NEW
    assert read(run) == NEW


def test_sha256sum_reads_the_checksums_and_they_are_of_every_file(run: Path) -> None:
    step = step_of(run)
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", CHECKSUMS], cwd=step, capture_output=True, text=True
    )
    assert checked.returncode == 0
    named = {line.partition(": ")[0] for line in checked.stdout.splitlines()}
    not_named = set(files_of(step)) - named
    assert {Path(name).name for name in not_named} == {CHECKSUMS, "commit_success.txt"}
    assert {"_CHECKPOINT_METADATA", "metrics/metrics", "params/manifest.ocdbt"} <= named


def test_training_goes_on_from_the_newest_good_one_and_can_save_that_step_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = flip(largest(step_of(run), "optimizer"))
    content = damaged.read_bytes()
    assert resume(run) == OLD
    said = capsys.readouterr().err
    aside = step_of(run).with_name(f"{NEW}.damaged")
    assert f"DAMAGED CHECKPOINT: {damaged} has other bytes than were written" in said
    assert f"GOING ON FROM STEP {OLD}; the damaged one is now {aside}" in said
    assert (aside / damaged.relative_to(step_of(run))).read_bytes() == content
    again = open_run(run)
    for step in (150, NEW, 300, 400):  # keeps 3
        save(again, step)
    again.close()
    assert sorted(os.listdir(run / CHECKPOINTS)) == [str(NEW), f"{NEW}.damaged", "300", "400"]
    for _ in range(2):
        flip(largest(step_of(run, 400), "params"))
        assert resume(run) == 300
        save(again := open_run(run), 400)
        again.close()
    assert {"400.damaged", "400.damaged1"} <= set(os.listdir(run / CHECKPOINTS))


def test_commands_refuse_and_name_the_file_and_the_good_step(run: Path) -> None:
    damaged = flip(largest(step_of(run), "params"))
    error = read(run)
    assert isinstance(error, DamagedCheckpointError)
    assert str(error) == (
        f"damaged checkpoint: {damaged} has other bytes than were written; the newest good one is "
        f"{step_of(run, OLD)}: name that, or bring the file back from a copy"
    )
    assert read(step_of(run, OLD)) == OLD
    assert read(step_of(run)).damage == error.damage
    flip(largest(step_of(run, OLD), "params"))
    assert "; there is no good one beside it: bring the file back" in str(read(run))
    assert "there is no good one beside it" in str(resume(run))
    assert sorted(os.listdir(run / CHECKPOINTS)) == [str(OLD), str(NEW)]  # unchanged


def test_what_a_command_does_not_read_may_be_damaged(run: Path) -> None:
    flip(largest(step_of(run), "optimizer"))
    (step_of(run) / "data" / "place.json").unlink()
    assert read(run) == NEW


def test_another_steps_item_is_found_though_it_is_whole(run: Path) -> None:
    for item in ("params", "optimizer", "data", "metrics"):
        shutil.rmtree(step_of(run) / item)
        shutil.copytree(step_of(run, OLD) / item, step_of(run) / item)
        assert find_damage(epath.Path(step_of(run)), [item]) is not None


def test_a_metrics_file_that_is_damaged_stops_nobody(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then it is unknown whether that step is the best, so retention must keep it."""
    (step_of(run, OLD) / "metrics" / "metrics").write_text("{")
    assert read(run) == NEW
    assert resume(run) == NEW
    assert f"the damaged one is now {step_of(run, OLD)}.damaged" in capsys.readouterr().err
    (step_of(run) / "metrics" / "metrics").write_text("{")
    assert str(step_of(run) / "metrics" / "metrics") in str(read(run))


def test_checkpoints_of_an_earlier_version_are_read_with_a_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (OLD, NEW):
        (step_of(run, step) / CHECKSUMS).unlink()
    assert resume(run) == NEW
    assert read(run) == NEW
    said = capsys.readouterr().err
    assert said.count(f"{run / CHECKPOINTS} has checkpoints without {CHECKSUMS}") == 1


def test_an_earlier_versions_damaged_checkpoint_is_named_too(run: Path) -> None:
    for step in (OLD, NEW):
        (step_of(run, step) / CHECKSUMS).unlink()
    for damaged in (run, shutil.copytree(run, run.with_name("other"))):
        file = largest(step_of(damaged), "params")
        file.write_bytes(file.read_bytes()[:100])
    assert "cannot be read (ValueError: " in str(read(run))
    assert resume(run) == OLD


def test_verification_can_be_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "digest", lambda path: pytest.fail(f"read {path}"))
    monkeypatch.setattr("plug_jax.checkpoints.integrity.digest", checksums.digest)
    run_dir = epath.Path(step_of(run))
    assert find_damage(run_dir, contents=False) is None
    (run_dir / "params" / "manifest.ocdbt").unlink()
    assert find_damage(run_dir, contents=False).file == "params/manifest.ocdbt"


def test_each_process_reads_a_part_of_the_files(run: Path) -> None:
    step = epath.Path(step_of(run))
    damaged = flip(largest(step_of(run), "params"))
    found = [find_damage(step, share=(i, 3)) for i in range(3)]
    assert [one.file for one in found if one] == [str(damaged.relative_to(step))]


def test_each_process_hashes_what_it_wrote_and_the_first_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = epath.Path(tmp_path)
    for name in ("params/ocdbt.process_0/d/a", "params/ocdbt.process_1/d/b", "params/d/c", "x"):
        (step / name).parent.mkdir(parents=True, exist_ok=True)
        (step / name).write_text(name)
    hashed: list[str] = []
    real = checksums.digest
    monkeypatch.setattr(checksums, "digest", lambda path: hashed.append(path.name) or real(path))
    write_part(step / "params", 1)
    assert hashed == ["b"]
    write_part(step / "params", 0)
    write_checksums(step)
    assert sorted(hashed) == ["a", "b", "c", "x"]
    names = {line.split("  ")[1] for line in (step / CHECKSUMS).read_text().splitlines()}
    assert names == set(files_of(tmp_path)) - {CHECKSUMS}


@pytest.mark.parametrize("kind", ["file", "empty", "no item", "link", "loop", "fifo"])
def test_directories(run: Path, tmp_path: Path, kind: str) -> None:
    step = step_of(run)
    if kind in ("file", "empty"):
        shutil.rmtree(step)
        step.write_text("") if kind == "file" else step.mkdir()
    else:
        moved = (step / "params").rename(tmp_path / "params")
        if kind == "link":
            (step / "params").symlink_to(moved)
        elif kind == "loop":
            moved.rename(step / "params")
            (step / "params" / "d2").symlink_to(step)
        elif kind == "fifo":
            moved.rename(step / "params")
            os.remove(step / "metadata" / "metadata")
            os.mkfifo(step / "metadata" / "metadata")
    error = read(run)
    assert isinstance(error, DamagedCheckpointError)
    assert f"the newest good one is {step_of(run, OLD)}" in str(error)
    assert resume(run) == OLD
    assert step.with_name(f"{NEW}.damaged").exists()


def test_a_model_dir_and_a_step_may_be_links(run: Path, tmp_path: Path) -> None:
    step = step_of(run)
    step.rename(tmp_path / "elsewhere")
    step.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(run)
    assert resume(tmp_path / "link") == NEW
    assert read(tmp_path / "link") == NEW


def test_what_may_not_be_read_is_not_taken_for_damaged(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PlainPath.iterdir

    def iterdir(path: PlainPath):
        if path.name == "optimizer" and path.parent.name == str(NEW):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(PlainPath, "iterdir", iterdir)
    error = resume(run)
    assert str(error) == (
        f"damaged checkpoint: {step_of(run)}/optimizer cannot be read: Permission denied; allow "
        "this user to read it"
    )
    assert step_of(run).exists()


def change(step: Path, name: str, **values: object) -> None:
    """Change a checkpoint's metadata, with matching checksums."""
    content = json.loads((step / name).read_text())
    for key, value in values.items():
        part = content
        *above, last = key.split("__")
        for one in above:
            part = part[one]
        part[last] = value
    (step / name).write_text(json.dumps(content))
    write_checksums(epath.Path(step))


def rename_array(step: Path, key: str, depth: int = 1) -> None:
    content = json.loads((step / "params" / "_METADATA").read_text())
    entry = next(iter(content["tree_metadata"].values()))
    entry["key_metadata"] = [{"key": key, "key_type": 2}] * depth
    (step / "params" / "_METADATA").write_text(json.dumps(content))


def nest(step: Path, name: str) -> None:
    (step / name).write_text("[" * 100_000 + "]" * 100_000)


def grow(step: Path, name: str) -> None:
    with (step / name).open("ab") as file:
        file.truncate(65 << 20)


HOSTILE = {
    "path": (lambda s: rename_array(s, "../../../x"), "names an array '../../../x'"),
    "parent": (lambda s: rename_array(s, ".."), "names an array '..'"),
    "deep tree": (lambda s: rename_array(s, "x", 10_000), "names an array in 10,000 steps"),
    "files": (
        lambda s: change(s, "params/_METADATA", use_ocdbt=False),
        "declares arrays in files of their own",
    ),
    "no tree": (
        lambda s: change(s, "params/_METADATA", tree_metadata=[1]),
        "does not name its arrays",
    ),
    "deep": (lambda s: nest(s, "metadata/metadata"), "is nested too deeply"),
    "huge": (lambda s: grow(s, "metadata/metadata"), "has 68,157,440 bytes"),
    "list": (lambda s: (s / "metadata/metadata").write_text("[]"), "is not a JSON object"),
    "vocabulary": (
        lambda s: change(s, "metadata/metadata", plug_config__vocab_size=10**12),
        "metadata/metadata declares vocab_size = 1,000,000,000,000",
    ),
    "layers": (
        lambda s: change(s, "metadata/metadata", plug_config__num_encoder_layers=10**6),
        "metadata/metadata declares num_encoder_layers = 1,000,000",
    ),
    "shape": (
        lambda s: change(s, "metadata/metadata", plug_config__hidden_size=1 << 29),
        "params holds for decoder/final_norm/bias one of (32,), and its metadata",
    ),
    "nothing": (
        lambda s: change(s, "metadata/metadata", plug_config=None),
        "metadata/metadata cannot be read (AttributeError",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_checkpoint_says_of_itself_is_believed_within_bounds(run: Path, name: str) -> None:
    do, what = HOSTILE[name]
    do(step_of(run))
    write_checksums(epath.Path(step_of(run)))
    error = read(run)
    assert isinstance(error, PlugError)
    assert what in str(error) and "\n" not in str(error)
    # Training finds a model other than its own.
    assert isinstance(resume(run), PlugError) if name == "shape" else resume(run) == OLD


@pytest.mark.parametrize("content", ["[" * 100_000 + "]" * 100_000, "[]", "1", '{"metrics": 1}'])
def test_what_orbax_reads_of_all_steps(run: Path, content: str) -> None:
    (step_of(run, OLD) / "_CHECKPOINT_METADATA").write_text(content)
    assert read(run) == NEW
    try:
        assert resume(run) == NEW
    except PlugError as error:
        assert "`plug-jax checkpoint verify` names them" in str(error)


def test_names_in_the_checksums_are_not_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    path = step_of(run) / CHECKSUMS
    for name in ("../../../secret", os.fspath(tmp_path / "secret")):
        path.write_text(path.read_text() + f"{'0' * 64}  {name}\n")
        assert find_damage(epath.Path(step_of(run))).what == "is missing"


@pytest.mark.parametrize("chunks", [(1 << 20,), (1 << 24,)])
def test_shapes_that_no_file_can_hold_take_no_memory(
    run: Path, chunks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A petabyte of zeros takes no disk space."""
    directory = step_of(run) / "params"
    spec = {
        "driver": "zarr",
        "kvstore": {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": f"{directory}/"},
            "path": "decoder.final_norm.bias",
        },
        "metadata": {"shape": [1 << 50], "chunks": list(chunks), "dtype": "<f4"},
    }
    ts.open(spec, create=True, delete_existing=True).result()
    write_checksums(epath.Path(step_of(run)))
    assert "params declares arrays of 4,503,599,627," in str(read(run))


def test_a_run_reads_its_own_arrays_however_small_their_files(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an optimizer's are when every update was skipped; a stranger's arrays are not read."""
    monkeypatch.setattr(declarations, "_FREE_BYTES", 0)
    monkeypatch.setattr(declarations, "_MOST_COMPRESSED", 0)
    assert resume(run) == NEW
    assert "params declares arrays of" in str(read(run))


def test_other_kinds_of_numbers_are_refused(run: Path) -> None:
    with open_manager(run / "other" / CHECKPOINTS, create=True) as manager:
        manager.save(
            NEW,
            args=ocp.args.Composite(params=ocp.args.StandardSave(arrays(1, jnp.int32))),
        )
    shutil.rmtree(step_of(run) / "params")
    shutil.copytree(step_of(run / "other") / "params", step_of(run) / "params")
    write_checksums(epath.Path(step_of(run)))
    assert "numbers of int32" in str(read(run))


def test_ls_verify_and_rm(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        {"step": OLD, "split": "train", "loss": 3.0},
        {"step": OLD, "split": "validation", "loss": 4.0},
        {"step": NEW, "split": "train", "loss": 1.5},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert main(["checkpoint", "verify", str(run), "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [(s["step"], s["state"], s["loss"], s["best"]) for s in steps] == [
        (OLD, "whole", 3.0, False),
        (NEW, "whole", 1.5, True),
    ]
    assert steps[0]["size"] == sum(
        f.stat().st_size
        for f in step_of(run, OLD).rglob("*")
        if f.is_file() and f.name not in (CHECKSUMS, "commit_success.txt")
    )
    assert main(["checkpoint", "rm", str(step_of(run)), str(step_of(run, OLD))]) == 2
    assert "is the only good checkpoint" in capsys.readouterr().err
    damaged = flip(largest(step_of(run), "params"))
    assert main(["checkpoint", "ls", str(run)]) == 0
    assert "not verified" in capsys.readouterr().out
    assert main(["checkpoint", "verify", str(run)]) == 1
    shown = capsys.readouterr()
    assert f"{NEW}: {damaged} has other bytes" in shown.err
    assert "damaged" in shown.out and "3.0000" in shown.out
    assert main(["checkpoint", "rm", str(step_of(run, OLD))]) == 2
    assert f"{step_of(run, OLD)} is the only good checkpoint of {run}" in capsys.readouterr().err
    assert resume(run) == OLD
    capsys.readouterr()
    assert main(["checkpoint", "ls", str(run), "--json"]) == 0
    names = [Path(s["path"]).name for s in json.loads(capsys.readouterr().out)["checkpoints"]]
    assert names == [str(OLD), f"{NEW}.damaged"]
    with held(PlainPath.of(run)):
        assert main(["checkpoint", "rm", f"{step_of(run)}.damaged"]) == ModelDirInUse.status
    assert "in use by another run" in capsys.readouterr().err
    assert main(["checkpoint", "rm", f"{step_of(run)}.damaged"]) == 0
    assert f"removed {step_of(run)}.damaged" in capsys.readouterr().out
    assert main(["checkpoint", "rm", "--even_the_last", str(step_of(run, OLD))]) == 0
    assert os.listdir(run / CHECKPOINTS) == []
    assert main(["checkpoint", "ls", str(run)]) == 2
    assert main(["checkpoint", "rm", str(run)]) == 2


@pytest.mark.parametrize("content", ["3\n", None], ids=["no record", "a directory"])
def test_without_losses_checkpoints_are_verified_all_the_same(
    run: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "metrics.jsonl").unlink(missing_ok=True)
    if content is None:
        (run / "metrics.jsonl").mkdir()
    else:
        (run / "metrics.jsonl").write_text(content)
    assert main(["checkpoint", "verify", str(run), "--json"]) == 0
    shown = capsys.readouterr()
    assert "losses are not shown: " in shown.err and "metrics.jsonl" in shown.err
    assert [s["loss"] for s in json.loads(shown.out)["checkpoints"]] == [None, None]


def test_a_step_that_is_a_link_to_nowhere_is_shown_and_removed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For commands that are given the MODEL_DIR."""
    link = run / CHECKPOINTS / "999"
    link.symlink_to("nowhere")
    assert main(["checkpoint", "ls", str(run)]) == 0
    assert f"999: {link} is missing" in capsys.readouterr().err
    assert main(["checkpoint", "verify", str(link)]) == 1
    assert main(["checkpoint", "rm", str(link)]) == 0
    assert not link.is_symlink() and main(["checkpoint", "verify", str(run)]) == 0


def test_a_directory_in_place_of_the_checksums_makes_no_step_whole(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = step_of(run) / CHECKSUMS
    sums.unlink()
    sums.mkdir()
    main(["checkpoint", "verify", str(step_of(run)), "--json"])
    [step] = json.loads(capsys.readouterr().out)["checkpoints"]
    assert step["state"] == "no checksums"


def test_some_of_the_matrix(written: Path, tmp_path: Path) -> None:
    """A sample; test_damage_matrix.py has the whole matrix."""
    names = {kind_of(name): name for name in files_of(step_of(written))}
    doing = damages(step_of(written, OLD))
    for i, (kind, name) in enumerate(list(names.items())[::3]):
        done = list(doing)[i % len(doing)]
        run = shutil.copytree(written, tmp_path / str(i))
        doing[done](step_of(run), name)
        assert resume(run) in (OLD, NEW), (kind, done)
        shutil.rmtree(run)


def test_evaluate_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = flip(largest(step_of(run), "params"))
    assert main(["generate", "--checkpoint", str(run), "--prompt", "天"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"plug-jax: error: damaged checkpoint: {damaged} ")


def test_tensorstore_does_not_leave_a_directory(tmp_path: Path) -> None:
    """So we need no check of the paths that a database refers to."""
    (tmp_path / "secret").write_text("x")
    (tmp_path / "item").mkdir()
    store = ts.KvStore.open({"driver": "file", "path": f"{tmp_path / 'item'}/"}).result()
    with pytest.raises(ValueError, match="Invalid key"):
        store.read("../secret").result()


def test_a_converted_checkpoint_is_checked_when_it_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    write_stored_model(tmp_path / "model")
    names = {name: os.fspath(tmp_path / name) for name in ("model", "hf", "back", "again")}
    export = ["convert", "export-hf", "--checkpoint", names["model"], "--output", names["hf"]]
    assert main(export) == 0
    assert main(["convert", "import-hf", "--input", names["hf"], "--output", names["back"]]) == 0
    step = tmp_path / "back" / CHECKPOINTS / "0"
    named = checksums.parse((step / CHECKSUMS).read_text())
    assert {"metadata/metadata", "params/manifest.ocdbt", "vocabulary/vocab.txt"} <= named.keys()
    assert find_damage(epath.Path(step)) is None
    damaged = flip(largest(step, "params"))
    capsys.readouterr()
    export[3:] = [names["back"], "--output", names["again"]]
    assert main(export) == 2
    assert f"damaged checkpoint: {damaged} has other bytes" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
