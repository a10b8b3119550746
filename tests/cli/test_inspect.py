"""Marks and rates of hand-made examples, whatever prints them, and what the user gets wrong."""

import numpy as np
import pytest
import seqio
import tensorflow as tf
from rich.console import Console

from plug_jax.cli import inspect
from plug_jax.cli.inspect_format import Fate, Rates, fates, show_example
from plug_jax.cli.main import main
from plug_jax.data.features import PALM_FEATURES, palm_features, structbert_features
from plug_jax.data.vocabularies import WordPieceVocabulary
from plug_jax.data.vocabulary_training import train_sentencepiece
from plug_jax.errors import PlugError
from tasks import pretrain

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天地人你我，。", "play", "##ing", "well"]

# Everything at once: a shuffled window, and a masked, a kept, a replaced and a plain token.
STAGE1 = [
    {
        "encoder_original_tokens": "[CLS] 天 地 人 [SEP] 你 我 play ##ing well [SEP]",
        "encoder_input_tokens": "[CLS] 人 天 地 [SEP] [MASK] 我 well ##ing [MASK] [SEP]",
        "encoder_loss_weights": [0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 0],
        "encoder_shuffled": [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        "encoder_token_types": [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
        "sentence_labels": [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        "sentence_weights": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    },
    {
        "encoder_original_tokens": "[CLS] 天 [UNK] [SEP] 地 [SEP]",
        "encoder_input_tokens": "[CLS] 天 [UNK] [SEP] 地 [SEP]",
        "encoder_loss_weights": [0, 0, 0, 0, 0, 0],
        "encoder_shuffled": [0, 0, 0, 0, 0, 0],
        "encoder_token_types": [0, 0, 0, 0, 1, 1],
        "sentence_labels": [0, 0, 0, 0, 0, 0],
        "sentence_weights": [1, 0, 0, 0, 0, 0],
    },
]
STAGE2 = [
    {
        "encoder_original_tokens": "[CLS] 天 地 [SEP]",
        "encoder_input_tokens": "[CLS] 天 [MASK] [SEP]",
        "encoder_loss_weights": [0, 0, 1, 0],
        "encoder_token_types": [0, 0, 0, 0],
        "decoder_input_tokens": "[CLS] 人 你 我",
        "decoder_target_tokens": "人 你 我 [SEP]",
        "decoder_loss_weights": [1, 1, 1, 1],
    },
    {
        "encoder_original_tokens": "[CLS] 我 [SEP]",
        "encoder_input_tokens": "[CLS] 我 [SEP]",
        "encoder_loss_weights": [0, 0, 0],
        "encoder_token_types": [0, 0, 0],
        "decoder_input_tokens": "[CLS] 天 地",  # not its targets, shifted
        "decoder_target_tokens": "人 你 [SEP]",
        "decoder_loss_weights": [0, 1, 1],
    },
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return WordPieceVocabulary(file)


def to_ids(example):
    return {
        name: np.array(
            [PIECES.index(piece) for piece in value.split()] if isinstance(value, str) else value,
            np.int32,
        )
        for name, value in example.items()
    }


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
    """Registers a task for the time of a test."""

    def add(name, source, features, preprocessors=()):
        seqio.TaskRegistry.add(
            name, source=source, preprocessors=list(preprocessors), output_features=features
        )
        request.addfinalizer(lambda: seqio.TaskRegistry.remove(name))

    return add


@pytest.fixture
def add_ours(add_task, vocabulary):
    """Registers hand-made examples of stage 1 or 2."""

    def add(name, examples):
        palm = "decoder_target_tokens" in examples[0]
        features = (palm_features if palm else structbert_features)(vocabulary)
        add_task(name, source_of([to_ids(example) for example in examples]), features)

    return add


@pytest.fixture
def shown(capsys, monkeypatch):
    """The lines that `plug-jax inspect` prints, without the space around and within them."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        assert main(["inspect", *arguments]) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.fixture
def refused(capsys):
    """The message with which `plug-jax inspect` fails."""

    def run(*arguments):
        assert main(["inspect", *arguments]) == 2
        captured = capsys.readouterr()
        assert len(captured.err.splitlines()) == 1
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
        "label 2: B precedes A",
        "lengths encoder 11 (A 5, B 6)",
        "tokens 4 plain, 2 masked, 1 replaced, 1 kept, 3 shuffled",
        "A [CLS]{天地人~人天地}[SEP]",
        "B {你}{我=}{play>well}ing {well}[SEP]",
    ]
    second = lines.index("example 2 " + "─" * 110)
    assert lines[second + 1 : second + 6] == [
        "label 0: B is from another document",
        "lengths encoder 6 (A 4, B 2)",
        "tokens 6 plain",
        "A [CLS]天[UNK][SEP]",
        "B 地[SEP]",
    ]
    table = lines.index("2 examples " + "─" * 109)
    assert lines[table + 1 :] == [
        "encoder length mean 8.5, 6 to 11",
        "chosen for masking 40.00% of 10 maskable tokens",
        "seen as [MASK] 50.00% of 4 these",
        "seen as a random token 25.00% of 4 these",
        "seen as itself 25.00% of 4 these",
        "in a shuffled window 30.00% of 10 maskable tokens",
        "label 0: B is from another document 50.00% of 2 labels",
        "label 1: B follows A 0.00% of 2 labels",
        "label 2: B precedes A 50.00% of 2 labels",
        "[UNK] 9.09% of 11 text tokens",
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
    assert lines[second + 1 : second + 6] == [
        "lengths encoder 3, decoder 3 (2 of them predicted)",
        "tokens 3 plain",
        "encoder [CLS]我[SEP]",
        "decoder 人你[SEP]",
        "its inputs [CLS]天地",
    ]
    table = lines.index("2 examples " + "─" * 109)
    assert lines[table + 1 : table + 4] == [
        "encoder length mean 3.5, 3 to 4",
        "decoder length mean 3.5, 3 to 4",
        "chosen for masking 33.33% of 3 maskable tokens",
    ]
    assert lines[-2] == "[UNK] 0.00% of 8 text tokens"


def test_a_token_that_changed_though_it_is_not_predicted_stands_out(vocabulary):
    example = to_ids(STAGE1[0])
    example["encoder_loss_weights"][7] = 0
    assert fates(example, vocabulary.mask_id)[6:9] == [Fate.KEPT, Fate.STRAY, Fate.PLAIN]
    assert "{我=}!play>well!ing" in as_text(example, vocabulary)
    rates = Rates(vocabulary)
    rates.add(example)
    assert ("changed but not predicted (!)", "1 tokens") in rates.rows()


def test_adjacent_masks_are_told_apart_and_a_window_is_one_mark(vocabulary):
    example = to_ids(STAGE1[0])
    example["encoder_shuffled"][:] = 0
    assert "{天>人}{地>天}{人>地}" in as_text(example, vocabulary)


def test_colours_are_added_to_the_marks(vocabulary):
    console = Console(force_terminal=True, color_system="standard", width=120, highlight=False)
    with console.capture() as capture:
        console.print(show_example(to_ids(STAGE1[0]), vocabulary, "title"))
    for mark in ("1;36m{天地人~人天地}", "1;31m{你}", "1;33m{我=}", "1;35m{play>well}"):
        assert f"\x1b[{mark}\x1b[0m" in capture.get()


def test_spaces_survive_between_marks(tmp_path):
    """SentencePiece, which drops the space that a text begins with."""
    spaced = train_sentencepiece(["天地 人你我 "] * 9, directory=tmp_path, vocab_size=11)
    original = np.array(
        [spaced.cls_id, *spaced.encode("天 地人 你 我"), spaced.sep_id], dtype=np.int32
    )
    assert original.size == 10
    example = {
        "encoder_original_tokens": original,
        "encoder_input_tokens": np.where([0, 0, 0, 1, 0, 1, 0, 0, 0, 0], spaced.mask_id, original),
        "encoder_loss_weights": np.array([0, 0, 0, 1, 0, 1, 0, 0, 0, 0]),
        "encoder_token_types": np.zeros(10, np.int32),
    }
    assert "encoder  [CLS]天 {地}人{▁}你 我[SEP]" in as_text(example, spaced)


def as_text(example, vocabulary):
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(show_example(example, vocabulary, "title"))
    return capture.get()


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
    assert lines[-2] == "inputs length mean 3.0, 2 to 4"
    assert not any("{" in line for line in lines)


def test_a_real_pipeline_with_its_drops_seed_and_lengths(vocabulary, shown, request):
    pretrain.add_palm(
        "inspect_palm", text_source("天地人你我" * 30, "天地", "我"), vocabulary, min_length=4
    )
    request.addfinalizer(lambda: seqio.TaskRegistry.remove("inspect_palm"))
    common = ("--task", "inspect_palm", "--feature_lengths", "encoder=6,decoder=5")
    lines = shown(*common)
    assert "dropped: document_too_short 2" in lines
    longest = [line.split()[-1] for line in lines if "length mean" in line]
    assert longest == ["6", "5"]
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
    assert "Did you mean inspect_stage1?" in message and "--list" in message
    task = ("--task", "inspect_stage1")
    assert "no split 'test', only train" in refused(*task, "--split", "test")
    assert "--rates_over must be at least 1, not 0" in refused(*task, "--rates_over", "0")
    assert "--num_examples must be at least 0, not -1" in refused(*task, "--num_examples", "-1")
    assert "no 'decoder' to limit, only encoder" in refused(*task, "--feature_lengths", "decoder=5")


def test_a_task_without_examples_says_what_was_dropped(vocabulary, refused, request):
    pretrain.add_palm("inspect_nothing", text_source("天地", "我"), vocabulary)
    request.addfinalizer(lambda: seqio.TaskRegistry.remove("inspect_nothing"))
    message = refused("--task", "inspect_nothing")
    assert "no example in split 'train'" in message and "document_too_short 2" in message


def test_feature_lengths_go_to_features():
    lengths = inspect.sequence_lengths("encoder=6, decoder_input_tokens=5", PALM_FEATURES)
    assert lengths == {
        "encoder_input_tokens": 6,
        "encoder_original_tokens": 6,
        "encoder_loss_weights": 6,
        "encoder_token_types": 6,
        "decoder_input_tokens": 5,
    }
    assert inspect.sequence_lengths("inputs=3", ["inputs", "targets"]) == {"inputs": 3}
    assert inspect.sequence_lengths("", PALM_FEATURES) is None
    for wrong in ("encoder", "encoder=", "encoder=0", "encoder=-3", "encoder=a"):
        with pytest.raises(PlugError, match="should read encoder=512"):
            inspect.sequence_lengths(wrong, PALM_FEATURES)
