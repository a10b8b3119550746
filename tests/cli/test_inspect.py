"""`plug-jax inspect`: printed examples and tasks, for any objective, and user errors."""

import functools
import json

import numpy as np
import pytest
import seqio
import tensorflow as tf
from rich.console import Console

from plug_jax.cli.main import main
from plug_jax.data.features import PALM, STRUCTBERT, output_features
from plug_jax.data.preprocessors.masking import masked_language_model
from plug_jax.errors import PlugError
from plug_jax.objectives import stages
from plug_jax.task_reports import inspection
from plug_jax.task_reports.decoded_examples import decode_example
from plug_jax.task_reports.terminal import show_example
from plug_jax.tasks import pretrain
from tests.inspected_examples import STAGE1, STAGE2, make_vocabulary, to_ids


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return make_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def source_of(examples):
    def read(split, shuffle_files, seed=None):
        signature = {
            name: tf.TensorSpec([None] if np.ndim(value) else [], np.asarray(value).dtype)
            for name, value in examples[0].items()
        }
        return tf.data.Dataset.from_generator(lambda: examples, output_signature=signature)

    return seqio.FunctionDataSource(read, splits=("train",))


def text_source(*texts):
    def read(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"text": list(texts)})

    return seqio.FunctionDataSource(read, splits=("train",))


@pytest.fixture
def add_task(request):
    """Register a task for the duration of a test."""

    def add(name, source, features, preprocessors=()):
        seqio.TaskRegistry.add(
            name, source=source, preprocessors=list(preprocessors), output_features=features
        )
        request.addfinalizer(lambda: seqio.TaskRegistry.remove(name))

    return add


@pytest.fixture
def add_ours(add_task, vocabulary):
    """Register hand-made examples of stage 1 or 2."""

    def add(name, examples):
        palm = "decoder_target_tokens" in examples[0]
        features = output_features(PALM if palm else STRUCTBERT, vocabulary)
        add_task(name, source_of([to_ids(example) for example in examples]), features)

    return add


@pytest.fixture
def shown(capsys, monkeypatch):
    """The lines that `plug-jax inspect` prints, with whitespace collapsed."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        assert main(["inspect", *arguments]) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.fixture
def refused(capsys):
    """The error message of `plug-jax inspect`."""

    def run(*arguments):
        assert main(["inspect", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and len(captured.err.splitlines()) == 1
        return captured.err

    return run


def test_stage1_example_and_rates(add_ours, shown):
    add_ours("inspect_stage1", STAGE1)
    lines = shown("--task", "inspect_stage1")
    assert lines[1:5] == [
        "{天} masked, the model sees [MASK]",
        "{天>地} replaced, it sees 地",
        "{天=} kept, it sees 天",
        "{天地人~人天地} shuffled, it sees 人天地",
    ]
    first = lines.index("example 1 " + "─" * 110)
    assert lines[first + 1 : first + 6] == [
        "lengths encoder 11 (A 5, B 6)",
        "tokens 4 plain, 2 masked, 1 replaced, 1 kept, 3 shuffled",
        "label 2: B precedes A",
        "A [CLS]{天地人~人天地}[SEP]",
        "B {你}{我=}{play>well}ing {well}[SEP]",
    ]
    second = lines.index("example 2 " + "─" * 110)
    assert lines[second + 1 : second + 6] == [
        "lengths encoder 6 (A 4, B 2)",
        "tokens 6 plain",
        "label 0: B is from another document",
        "A [CLS]天[UNK][SEP]",
        "B 地[SEP]",
    ]
    table = lines.index("2 examples " + "─" * 109)
    assert lines[table + 1 :] == [
        "95% bounds asked",
        "encoder length mean 8.5 3.6 to 13.4",
        "range 6 to 11",
        "chosen for masking 40.00% of 10 maskable tokens",
        "seen as [MASK] 50.00% of 4 chosen tokens",
        "seen as random 25.00% of 4 chosen tokens",
        "seen as itself 25.00% of 4 chosen tokens",
        "in a shuffled window 30.00% of 10 maskable tokens",
        "label 0: B is from another document 50.00% of 2 labels",
        "label 1: B follows A 0.00% of 2 labels",
        "label 2: B precedes A 50.00% of 2 labels",
        "specials changed or predicted 0 of 7 special tokens 0 ✓ within",
        "changed but not predicted (!) 0 of 3 tokens not predicted 0 ✓ within",
        "[UNK] 9.09% of 11 text tokens",
        "encoder too long for a row 0 of 2 examples (rows of 22) 0 ✓ within",
        "examples per row 2.0 (2 packed)",
        "encoder padding 22.73% of rows of 22",
        "pieces used 80.00% of 10 regular ones",
        "most frequent 天 2 地 2 人 1 你 1 我 1 play 1 ##ing 1 well 1",
        "",
        "3 of 3 statistics agree with the task's settings.",
        "",
    ]


def test_stage2_example_and_rates(add_ours, shown):
    add_ours("inspect_stage2", STAGE2)
    lines = shown("--task", "inspect_stage2")
    assert not any("shuffled" in line or "label" in line for line in lines)
    first = lines.index("example 1 " + "─" * 110)
    assert lines[first + 1 : first + 6] == [
        "lengths encoder 4, decoder 4",
        "tokens 3 plain, 1 masked",
        "encoder [CLS]天{地}[SEP]",
        "decoder 人你我[SEP]",
        "",
    ]
    second = lines.index("example 2 " + "─" * 110)
    assert lines[second + 1 : second + 7] == [
        "lengths encoder 3, decoder 3",
        "tokens 3 plain",
        "predicted 2 of 3 decoder tokens",
        "encoder [CLS]我[SEP]",
        "decoder 人你[SEP]",
        "its inputs [CLS]天地",
    ]
    table = lines.index("2 examples " + "─" * 109)
    assert lines[table + 2 : table + 7] == [
        "encoder length mean 3.5 2.5 to 4.5",
        "range 3 to 4",
        "decoder length mean 3.5 2.5 to 4.5",
        "range 3 to 4",
        "chosen for masking 33.33% of 3 maskable tokens",
    ]
    assert "decoder inputs out of step 2 of 7 decoder positions 0 ✗ outside" in lines
    assert lines[-3:] == [
        "4 of 5 statistics agree with the task's settings.",
        "✗ outside: decoder inputs out of step. Assumed: nothing: this must hold for every "
        "example.",
        "",
    ]


def test_a_rate_stands_beside_its_bounds_and_what_is_asked(add_task, vocabulary, shown):
    """Two examples with five of ten tokens masked, where the task asks for all of them."""
    original = np.int32([2, *range(5, 15), 3])
    example = {
        "encoder_original_tokens": original,
        "encoder_token_types": np.zeros_like(original),
        "decoder_input_tokens": original,
        "decoder_target_tokens": np.append(original[1:], 3).astype(np.int32),
        "decoder_loss_weights": np.ones_like(original),
    }
    masking = functools.partial(masked_language_model, vocabulary=vocabulary, mask_rate=1.0)
    undone = seqio.map_over_dataset(undo_masking)
    features = output_features(PALM, vocabulary)
    add_task("inspect_rates", source_of([example] * 2), features, [masking, undone])
    lines = shown("--task", "inspect_rates")
    assert (
        "chosen for masking 50.00% of 20 maskable tokens 29.93% to 70.07% 100.00% ✗ outside"
        in lines
    )
    outside = "✗ outside: chosen for masking. Assumed: each token is chosen independently."
    assert outside in lines


def undo_masking(example):
    """Unmask the second half of an example."""
    first_half = tf.range(12) < 6
    tokens, original = example["encoder_input_tokens"], example["encoder_original_tokens"]
    weights = example["encoder_loss_weights"]
    return {
        **example,
        "encoder_input_tokens": tf.where(first_half, tokens, original),
        "encoder_loss_weights": tf.where(first_half, weights, 0),
    }


def test_colours_are_added_to_the_marks(vocabulary):
    console = Console(force_terminal=True, color_system="standard", width=120, highlight=False)
    with console.capture() as capture:
        console.print(
            show_example(decode_example(to_ids(STAGE1[0]), stages.STRUCTBERT, vocabulary), "title")
        )
    for mark in ("1;36m{天地人~人天地}", "1;31m{你}", "1;33m{我=}", "1;35m{play>well}"):
        assert f"\x1b[{mark}\x1b[0m" in capture.get()


def test_a_task_with_other_features_is_shown_feature_by_feature(add_task, vocabulary, shown):
    examples = [
        {"inputs": np.int32([5, 6]), "score": np.float32(0.5), "source": "报纸"},
        {"inputs": np.int32([7, 8, 9, 10]), "score": np.float32(1), "source": "诗"},
    ]
    numbers = seqio.PassThroughVocabulary(1)
    features = {
        "inputs": seqio.Feature(vocabulary, add_eos=False),
        "score": seqio.Feature(numbers, add_eos=False, rank=0, dtype=tf.float32),
    }
    source = source_of([{**e, "source": np.array(e["source"].encode())} for e in examples])
    add_task("inspect_other", source, features)
    lines = shown("--task", "inspect_other", "--num_examples", "1")
    assert lines[1:4] == ["inputs (2) 天地", "score 0.5", "source 报纸"]
    assert lines[-3:-1] == ["inputs length mean 3.0 1.0 to 5.0", "range 2 to 4"]
    assert not any("{" in line for line in lines)


def test_a_real_pipeline_with_its_drops_seed_and_lengths(vocabulary, shown, request):
    pretrain.add_palm(
        "inspect_palm", text_source("天地人你我" * 30, "天地", "我"), vocabulary, min_length=4
    )
    request.addfinalizer(lambda: seqio.TaskRegistry.remove("inspect_palm"))
    common = ("--task", "inspect_palm", "--feature_lengths", "encoder=6,decoder=5")
    lines = shown(*common)
    assert "dropped: document_too_short 2" in lines
    ranges = [line for line in lines if line.startswith("range")]
    assert ranges == ["range 4 to 6 4 to 6", "range 4 to 5 4 to 5"]
    assert any(line.startswith("encoder padding") and "rows of 6" in line for line in lines)
    assert shown(*common, "--seed", "1") != lines


def test_how_many_examples_are_shown_and_counted(add_ours, shown):
    add_ours("inspect_many", STAGE1 * 5)
    task = ("--task", "inspect_many")
    lines = shown(*task, "--num_examples", "2", "--rates_over", "3")
    assert sum(line.startswith("example ") for line in lines) == 2
    assert any(line.startswith("3 examples ─") for line in lines)
    lines = shown(*task, "--num_examples", "4", "--rates_over", "1")
    assert any(line.startswith("4 examples ─") for line in lines)
    assert shown(*task, "--num_examples", "0", "--rates_over", "1")[0].startswith("1 example ─")


def test_a_module_registers_its_tasks(tmp_path, monkeypatch, shown, refused, request):
    (tmp_path / "inspected_tasks.py").write_text(
        "import seqio\n"
        "seqio.TaskRegistry.add('inspect_module', preprocessors=[], output_features={},\n"
        "    source=seqio.TextLineDataSource({'train': 'no_file'}))\n"
        "seqio.MixtureRegistry.add('inspect_mixture', ['inspect_module'], default_rate=1.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    request.addfinalizer(lambda: seqio.TaskRegistry.remove("inspect_module"))
    request.addfinalizer(lambda: seqio.MixtureRegistry.remove("inspect_mixture"))
    lines = shown("--list", "--module", "inspected_tasks")
    assert "inspect_module task features of its own" in lines
    assert "inspect_mixture mixture features of its own" in lines
    assert "'no_such_module'" in refused(
        "--list", "--module", "inspected_tasks", "--module", "no_such_module"
    )


def test_the_list_tells_the_stages(add_ours, shown):
    add_ours("inspect_stage1", STAGE1)
    add_ours("inspect_stage2", STAGE2)
    lines = shown("--list")
    assert "inspect_stage1 task stage 1 (StructBERT)" in lines
    assert "inspect_stage2 task stage 2 (PALM)" in lines


def test_wrong_names_and_numbers(add_ours, refused):
    add_ours("inspect_stage1", STAGE1)
    message = refused("--task", "inspect_stage")
    assert "Did you mean inspect_stage1" in message and "--list" in message
    task = ("--task", "inspect_stage1")
    assert "no split 'test', only train" in refused(*task, "--split", "test")
    assert "--rates_over must be at least 1, not 0" in refused(*task, "--rates_over", "0")
    assert "--num_examples must be at least 0, not -1" in refused(*task, "--num_examples", "-1")
    endless = refused(*task, "--feature_lengths", f"encoder={'9' * 20}")
    assert "should read encoder=512, or another length" in endless
    assert "no 'decoder' to limit, only encoder" in refused(*task, "--feature_lengths", "decoder=5")


def test_a_task_without_examples_says_what_was_dropped(vocabulary, refused, request):
    pretrain.add_palm("inspect_nothing", text_source("天地", "我"), vocabulary)
    request.addfinalizer(lambda: seqio.TaskRegistry.remove("inspect_nothing"))
    message = refused("--task", "inspect_nothing")
    assert "no example in split 'train'" in message and "document_too_short 2" in message


def test_feature_lengths_go_to_features():
    names = [feature.name for feature in PALM]
    lengths = inspection.sequence_lengths("encoder=6, decoder_input_tokens=5", names, stages.PALM)
    assert lengths == {
        "encoder_input_tokens": 6,
        "encoder_original_tokens": 6,
        "encoder_loss_weights": 6,
        "encoder_token_types": 6,
        "decoder_input_tokens": 5,
    }
    assert inspection.sequence_lengths("inputs=3", ["inputs", "targets"]) == {"inputs": 3}
    assert inspection.sequence_lengths("", names, stages.PALM) is None
    for wrong in ("encoder", "encoder=", "encoder=0", "encoder=-3", "encoder=a"):
        with pytest.raises(PlugError, match="should read encoder=512"):
            inspection.sequence_lengths(wrong, names, stages.PALM)


def test_options_that_do_not_go_together(refused, capsys):
    assert "--input needs --stage 1" in refused("--input", "a.txt")
    assert "--module registers tasks" in refused(
        "--input", "a.txt", "--stage", "1", "--module", "tasks.demo"
    )
    for option in (
        ("--stage", "1"),
        ("--vocabulary", "v"),
        ("--format", "jsonl"),
        ("--text_key", "k"),
    ):
        assert f"{option[0]} goes with --input" in refused("--task", "some", *option)
    assert "--json needs --task or --input" in refused("--list", "--json")
    assert "no directory" in refused("--task", "some", "--report", "/no_such_directory/a.html")
    for two in (
        ("--task", "a", "--list"),
        ("--input", "a", "--list"),
        ("--task", "a", "--input", "b"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["inspect", *two])
        assert stopped.value.code == 2
        assert "not allowed with argument" in capsys.readouterr().err


def test_json_is_all_that_is_printed(add_ours, capsys):
    add_ours("inspect_json", STAGE1)
    assert main(["inspect", "--task", "inspect_json", "--json", "--seed", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["split"], found["seed"], found["examples"]) == (
        "inspect_json", "train", 3, 2
    )  # fmt: skip
    assert found["shares"]["mask_rate"]["value"] == 0.4
    assert found["shares"]["stray"]["ok"] is True
    assert found["lengths"]["encoder"]["counts"] == [[6, 1], [11, 1]]
    assert found["fill"]["pad_fraction"]["encoder"] == pytest.approx(5 / 22)


def test_a_report_holds_more_examples_than_the_terminal(add_ours, shown, tmp_path):
    add_ours("inspect_report", STAGE2 * 15)
    page = tmp_path / "page.html"
    lines = shown("--task", "inspect_report", "--report", str(page))
    assert lines[-1] == f"Wrote {page}"
    assert sum(line.startswith("example ") for line in lines) == 3
    assert page.read_text(encoding="utf-8").count("<article>") == 20
    shown("--task", "inspect_report", "--report", str(page), "--num_examples", "1")
    assert page.read_text(encoding="utf-8").count("<article>") == 1
