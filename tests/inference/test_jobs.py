"""Whole jobs over a stored model: batches, meshes, kills, bad rows, and errors."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
import pytest

from plug_jax.checkpoints.saved_model import open_checkpoint
from plug_jax.errors import PlugError
from plug_jax.file_locks import alone
from plug_jax.inference import jobs
from plug_jax.inference.batch_generation import Generation, row_seed
from plug_jax.inference.classification import Classification
from plug_jax.inference.generator import generate
from plug_jax.inference.jobs import Answer, DecoderWork, Job, run
from plug_jax.inference.model import InferenceModel, NoNumbersError
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.inference.rows import Row, RowSource, contents_of
from plug_jax.inference.scoring import Scoring
from plug_jax.partitioning import Partitioner
from plug_jax.tasks import pretrain
from tests.inference_model import CONFIG, lively_model
from tests.stored_model import CHARACTERS, write_stored_model

OPTIONS = GenerationOptions(max_new_tokens=12, num_samples=2, seed=3, top_k=0)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stored_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Texts of one to forty characters, so that there are two buckets."""
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list(CHARACTERS), 1 + 7 * n % 40)) for n in range(11)]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture(scope="module")
def expected(model_dir: Path, prompts: list[str]) -> list[list[str]]:
    """The texts of each prompt, generated alone."""
    model = InferenceModel.load(model_dir)
    return [
        [t.text for t in generate(model, [prompt], OPTIONS, seeds=[row_seed(3, index)])[0]]
        for index, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("batch_size", [1, 6])
def test_a_row_has_the_same_texts_in_any_batch(tmp_path, model_dir, prompts, expected, batch_size):
    rows = [{"id": f"r{n}", "prompt": prompt} for n, prompt in enumerate(prompts)]
    source = RowSource(files=str(write_rows(tmp_path / "in.jsonl", rows)))
    job = Job(
        checkpoint=str(model_dir),
        rows=source,
        output=str(tmp_path / "out.jsonl"),
        batch_size=batch_size,
    )
    found = list(run(job, Generation(options=OPTIONS)))
    assert found == read_rows(tmp_path / "out.jsonl")
    assert [{k: row[k] for k in ("id", "prompt")} for row in found] == rows
    assert [[text["text"] for text in row["generated"]] for row in found] == expected
    for text in (text for row in found for text in row["generated"]):
        assert text.keys() == {"text", "tokens", "log_prob", "finish_reason"}
        assert text["finish_reason"] == ("length" if text["tokens"] == 12 else "stop")
    assert len({text for texts in expected for text in texts}) > 10  # they do differ


def test_a_row_has_the_same_texts_on_any_mesh(model_dir, prompts, expected):
    rows = [Row({"text": prompt}) for prompt in prompts]
    job = Job(
        checkpoint=str(model_dir),
        rows=rows,
        batch_size=8,
        partitioner=Partitioner(data=2, fsdp=2, tensor=2),
    )
    assert jax.device_count() == 8
    found = list(run(job, Generation(options=OPTIONS)))
    assert [[text["text"] for text in row["generated"]] for row in found] == expected


def test_beam_search_gives_scores(model_dir, prompts):
    options = GenerationOptions(max_new_tokens=6, num_beams=3, num_samples=2)
    job = Job(checkpoint=str(model_dir), rows=[Row({"prompt": prompts[0]})])
    [row] = run(job, Generation(options=options))
    scores = [text["score"] for text in row["generated"]]
    assert len(scores) == 2 and scores[0] >= scores[1]


def test_bad_rows_have_an_error_in_their_place(tmp_path, model_dir):
    path = tmp_path / "in.jsonl"
    lines = [
        '{"prompt": "天地"}',
        "nonsense",
        '{"target": "天"}',
        json.dumps({"prompt": "天" * 47, "generated": "old"}),
        json.dumps({"prompt": "天" * 46, "generated": "old", "error": "old"}),
        '{"prompt": 3}',
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    job = Job(
        checkpoint=str(model_dir), rows=RowSource(files=str(path)), output=str(tmp_path / "o.jsonl")
    )
    found = list(run(job, Generation(options=GenerationOptions(max_new_tokens=2))))
    assert found == read_rows(tmp_path / "o.jsonl")
    assert [sorted(row) for row in found] == [
        ["generated", "prompt"],
        ["error", "line"],
        ["error", "target"],
        ["error", "prompt"],
        ["generated", "prompt"],
        ["error", "prompt"],
    ]
    assert "in.jsonl, line 2 is not JSON" in found[1]["error"]
    assert "no field 'prompt' or 'text' or 'inputs'; the row has target" in found[2]["error"]
    assert "has 47 tokens; this model reads at most 46" in found[3]["error"]
    assert isinstance(found[4]["generated"], list)


def test_a_field_for_the_prompt_can_be_named(model_dir):
    job = Job(checkpoint=str(model_dir), rows=[Row({"prompt": "天", "question": "风花雪"})])
    options = GenerationOptions(max_new_tokens=4, temperature=0)
    [named] = run(job, Generation(options=options, prompt_field="question"))
    [[text]] = generate(InferenceModel.load(model_dir), ["风花雪"], options)
    assert named["generated"][0]["text"] == text.text


@pytest.mark.parametrize("work", ["infer", "score", "classify"])
def test_a_row_without_numbers_has_an_error_and_a_model_without_them_ends_the_job(
    tmp_path, monkeypatch, model_dir, work
):
    """NaN in a late position breaks long prompts; in the first part, all rows."""
    works = {
        "infer": Generation(options=GenerationOptions(max_new_tokens=4)),
        "score": Scoring(),
        "classify": Classification(labels={"a": "天", "b": "地"}, prompt_template="{prompt}"),
    }
    model = InferenceModel.load(model_dir)
    embeddings = model.params["embeddings"]
    broken = embeddings["position_embeddings"].at[40].set(np.nan)
    model.params = {**model.params, "embeddings": {**embeddings, "position_embeddings": broken}}
    monkeypatch.setattr(InferenceModel, "load", lambda *args, **kwargs: model)
    rows = [Row({"prompt": "天" * n, "target": "风花"}) for n in (3, 45, 5)]
    output = str(tmp_path / "out.jsonl")
    # Batches of one: in a longer row's batch the others' padding includes that position too.
    job = Job(checkpoint=str(model_dir), rows=rows, output=output, batch_size=1)
    sound, without, other = run(job, works[work])
    assert sound.keys() == other.keys() >= {"prompt", *works[work].ANSWERS} - {"left_out"}
    assert without.keys() == {"prompt", "target", "error"}
    assert "gives no numbers" in without["error"]

    job = dataclasses.replace(job, rows=[rows[1]] * 2, output=str(tmp_path / "none.jsonl"))
    with pytest.raises(NoNumbersError):
        list(run(job, works[work]))
    assert not (tmp_path / "none.jsonl").exists()


class Echo(DecoderWork):
    """Work without a model: answers with the row's number."""

    ANSWERS = ("echo",)

    def __init__(self, *, seed: int = 0, fails_at: int | None = None) -> None:
        self.seed, self.fails_at = seed, fails_at
        self.batches: list[list[int]] = []

    def settings(self):
        return {"seed": self.seed}

    def prepare(self, model, row, index):
        if index == self.fails_at:
            raise KeyboardInterrupt
        return index

    def size(self, item):
        return (1 + (item >= 90), -item)

    def answer(self, model, items):
        self.batches.append(list(items))
        return [Answer({"echo": item}, 1) for item in items]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Loading a model returns `lively_model` at once; the list counts the calls."""
    loads: list[str] = []

    def load(path, *args, **kwargs):
        loads.append(str(path))
        return lively_model()

    monkeypatch.setattr(jobs.InferenceModel, "load", load)
    return loads


@pytest.fixture
def echo_job(tmp_path: Path, model_dir: Path) -> Job:
    """A hundred rows, sixteen per part."""
    source = write_rows(tmp_path / "in.jsonl", [{"n": n} for n in range(100)])
    return Job(
        checkpoint=str(model_dir),
        rows=RowSource(files=str(source)),
        output=str(tmp_path / "out.jsonl"),
        batch_size=2,
    )


def test_the_longest_rows_of_a_part_share_batches(echo_job, no_model):
    work = Echo()
    rows = list(run(echo_job, work))
    assert [(row["n"], row["echo"]) for row in rows] == [(n, n) for n in range(100)]
    assert work.batches[0] == [15, 14]  # by `size`, within the first sixteen
    # Rows of two texts fill a batch of two texts, and do not share one with others.
    assert all(len(batch) == 1 for batch in work.batches if max(batch) >= 90)
    assert all(len(batch) == 2 for batch in work.batches if max(batch) < 90)
    # An odd number of rows is filled up with a copy.
    odd = Echo()
    list(run(Job(checkpoint=echo_job.checkpoint, rows=[Row({})] * 3, batch_size=2), odd))
    assert odd.batches == [[2, 1], [0]]


@pytest.mark.parametrize("at", [0, 15, 16, 50, 99])
def test_an_interrupted_job_goes_on(echo_job, no_model, capfd, at):
    """It repeats at most the current part, and the output is as if uninterrupted."""
    path = Path(echo_job.output)
    with pytest.raises(KeyboardInterrupt):
        list(run(echo_job, Echo(fails_at=at)))
    assert not path.exists()
    kept = f"stopped; {at // 16 * 16} of 100 rows are kept, and the same command resumes"
    assert kept in capfd.readouterr().err
    work = Echo()
    rows = list(run(echo_job, work))
    assert rows == read_rows(path) == [{"n": n, "echo": n} for n in range(100)]
    assert min(min(batch) for batch in work.batches) == at // 16 * 16
    assert ("resuming after" in capfd.readouterr().err) == (at >= 16)
    no_model.clear()
    assert list(run(echo_job, Echo(fails_at=0))) == rows  # complete: nothing is loaded or computed
    assert no_model == []


def test_another_batch_size_goes_on_with_the_same_parts(echo_job, no_model):
    with pytest.raises(KeyboardInterrupt):
        list(run(echo_job, Echo(fails_at=40)))
    other = dataclasses.replace(echo_job, batch_size=64)
    work = Echo()
    assert [row["echo"] for row in run(other, work)] == list(range(100))
    assert min(min(batch) for batch in work.batches) == 32


def test_a_changed_job_is_refused(echo_job, no_model, tmp_path, model_dir):
    with pytest.raises(KeyboardInterrupt):
        list(run(echo_job, Echo(fails_at=40)))
    with pytest.raises(PlugError, match="options.seed was 0 and is 1"):
        list(run(echo_job, Echo(seed=1)))
    with pytest.raises(PlugError, match="options.dtype was None and is 'bfloat16'"):
        list(run(dataclasses.replace(echo_job, dtype="bfloat16"), Echo()))
    (model_dir / "checkpoints" / "1").rename(model_dir / "checkpoints" / "2")
    try:
        with pytest.raises(PlugError, match="checkpoint.path was .*/1' and is .*/2'"):
            list(run(echo_job, Echo()))
    finally:
        (model_dir / "checkpoints" / "2").rename(model_dir / "checkpoints" / "1")
    write_rows(tmp_path / "in.jsonl", [{"n": n} for n in range(99)] + [{"n": -1}])
    with pytest.raises(PlugError, match="input.sha256 was"):
        list(run(echo_job, Echo()))


def test_an_output_that_would_be_an_input_is_refused(echo_job, tmp_path, no_model):
    rows = RowSource(files=str(tmp_path / "*.jsonl"))
    with pytest.raises(PlugError, match="would be read as INPUT"):
        list(run(dataclasses.replace(echo_job, rows=rows), Echo()))
    odd = tmp_path / "lr=[1e-4]*"
    odd.mkdir()
    (odd / "in[1].jsonl").write_bytes((tmp_path / "in.jsonl").read_bytes())
    for pattern in ("*.jsonl", "in[1].jsonl"):
        job = dataclasses.replace(
            echo_job, rows=RowSource(files=str(odd / pattern)), output=str(odd / "in[1].jsonl")
        )
        with pytest.raises(PlugError, match="would be read as INPUT"):
            list(run(job, Echo()))
    assert not (tmp_path / "out.jsonl.manifest.json").exists()


def test_processes_that_read_different_inputs_are_refused(echo_job, monkeypatch):
    saved, contents = open_checkpoint(echo_job.checkpoint), contents_of(echo_job.rows)
    job = dataclasses.replace(echo_job, partitioner=Partitioner())
    monkeypatch.setattr(jobs.jax, "process_count", lambda: 2)
    for theirs, differs in ((0, False), (1, True)):
        monkeypatch.setattr(
            jobs.multihost_utils,
            "process_allgather",
            lambda digest, theirs=theirs: np.stack([digest, digest ^ np.uint8(theirs)]),
        )
        with pytest.raises(PlugError, match="read different inputs") if differs else nullcontext():
            jobs._check(job, saved, contents)


def test_nothing_to_do_is_said(echo_job, tmp_path):
    (tmp_path / "in.jsonl").write_text("\n")
    with pytest.raises(PlugError, match="the input has no row"):
        list(run(echo_job, Echo()))
    with pytest.raises(PlugError, match="BATCH_SIZE must be between 1 and 65536, not 0"):
        dataclasses.replace(echo_job, batch_size=0)


def test_the_examples_of_a_task_are_written_for_as_they_are(tmp_path, model_dir):
    (tmp_path / "a.txt").write_text(f"{CHARACTERS}\n", encoding="utf-8")
    vocabulary = str(model_dir / "checkpoints" / "1" / "vocabulary")
    files = {"train_files": str(tmp_path / "a.txt"), "validation_files": str(tmp_path / "a.txt")}
    name = pretrain.palm_text(
        **files, vocabulary=vocabulary, min_length=8, max_length=24, name="jobs_palm"
    )
    source = RowSource(mixture_or_task_name=name)
    options = GenerationOptions(max_new_tokens=4, temperature=0)
    rows = list(run(Job(checkpoint=str(model_dir), rows=source), Generation(options=options)))
    texts = generate(InferenceModel.load(model_dir), [r.ids["prompt"] for r in source], options)
    assert [row["generated"][0]["text"] for row in rows] == [text.text for [text] in texts]
    assert all(row["target"] in CHARACTERS for row in rows)

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    name = pretrain.palm_text(**files, vocabulary=str(tmp_path / "vocab.txt"), name="jobs_other")
    other = RowSource(mixture_or_task_name=name)
    with pytest.raises(PlugError, match="'jobs_other' has another vocabulary than the model"):
        list(run(Job(checkpoint=str(model_dir), rows=other), Generation(options=options)))


def test_seeds_differ_by_row_and_by_seed():
    seeds = {row_seed(seed, index) for seed in range(50) for index in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert CONFIG.max_positions == 48  # of which test_bad_rows makes use


def test_one_run_at_a_time_writes_an_output(model_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.jsonl"
    job = Job(checkpoint=str(model_dir), rows=[Row({"text": "天"})], output=str(output))
    output.parent.mkdir()
    with alone(f"{output}.lock", ""), pytest.raises(PlugError, match="another run is writing"):
        list(run(job, Scoring()))
    assert list(output.parent.iterdir()) == []
    output.parent.rmdir()
    list(run(job, Scoring()))
    assert {path.name for path in output.parent.iterdir()} == {
        "out.jsonl",
        "out.jsonl.manifest.json",
    }
