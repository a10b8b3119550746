"""Encoder inference: states, vectors and masked tokens, alone and in batches."""

from __future__ import annotations

import functools
import importlib
import json
import math
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import plug_jax
from plug_jax.convert.from_torch import ImportOptions, import_weights
from plug_jax.convert.sources import open_hf
from plug_jax.convert.to_torch import export_hf
from plug_jax.data.vocabularies.sentencepiece_training import train_sentencepiece
from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES
from plug_jax.errors import PlugError
from plug_jax.inference.encoder import EncoderModel
from plug_jax.inference.encoding import Embedding
from plug_jax.inference.jobs import Job, run
from plug_jax.inference.mask_filling import MaskFilling, read_masked
from plug_jax.inference.request_options import EmbeddingOptions, MaskOptions
from plug_jax.inference.rows import Row
from plug_jax.models.plug import PlugModel
from tests import golden_weights, reference_model
from tests.convert import weights
from tests.inference_model import CONFIG, lively_params
from tests.stored_model import CHARACTERS, write_stored_model

TEXT = "天地Ab，人c 我你"


ROWS = 90
CONFIG_JSON = {
    "model_type": "bert",
    "vocab_size": ROWS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


@pytest.fixture(scope="module")
def bert_files(tmp_path_factory):
    """A StructBERT with random weights in Hugging Face's layout."""
    directory = tmp_path_factory.mktemp("structbert")
    config = weights.bert_config(max_positions=64)
    save_file(weights.state_dict(config, "bert", rows=ROWS), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(CONFIG_JSON))
    pieces = [*SPECIAL_PIECES, *CHARACTERS, "，", "ab", "##c", "c"]
    pieces += [f"[unused{n}]" for n in range(ROWS - len(pieces))]
    (directory / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def structbert(bert_files, tmp_path_factory):
    """The same as a MODEL_DIR."""
    model = tmp_path_factory.mktemp("converted") / "model"
    import_weights(open_hf(bert_files), model, ImportOptions())
    return model


@pytest.fixture(scope="module")
def bert(structbert):
    return plug_jax.load(structbert)


@pytest.fixture(scope="module")
def stage2(tmp_path_factory):
    return write_stored_model(tmp_path_factory.mktemp("stage2"))


@pytest.fixture(scope="module")
def writer(stage2):
    return plug_jax.load(stage2)


def test_a_converted_bert_gives_its_hidden_states(bert, bert_files):
    config, params = golden_weights.load_structbert(bert_files)
    found = bert.encode(TEXT)
    ids = np.array([[token.id for token in found.tokens]])
    expected = reference_model.encode(params, config, ids)[0]
    np.testing.assert_allclose(found.states, expected, atol=1e-4)
    np.testing.assert_allclose(found.vector("cls"), expected[0], atol=1e-4)
    np.testing.assert_allclose(bert.embed(TEXT), expected[1:-1].mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(found.vector(), bert.embed(TEXT), atol=1e-5)
    np.testing.assert_allclose(found.vector("cls"), bert.embed(TEXT, pooling="cls"), atol=1e-5)


def test_tokens_know_where_they_stand(bert):
    found = bert.encode(TEXT)
    assert [(t.piece, TEXT[t.start : t.end]) for t in found.tokens] == [
        ("[CLS]", ""),
        ("天", "天"),
        ("地", "地"),
        ("ab", "Ab"),
        ("，", "，"),
        ("人", "人"),
        ("c", "c"),
        ("我", "我"),
        ("你", "你"),
        ("[SEP]", ""),
    ]
    assert (found.tokens[0].start, found.tokens[-1].start) == (0, len(TEXT))
    assert len(found.states) == len(found.tokens)


def test_vectors_of_length_one(bert):
    vectors = bert.embed([TEXT, "天"], normalize=True)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    plain = bert.embed([TEXT, "天"])
    np.testing.assert_allclose(vectors, plain / np.linalg.norm(plain, axis=1)[:, None], atol=1e-6)
    np.testing.assert_allclose(bert.encode("天").vector(normalize=True), vectors[1], atol=1e-5)


def test_neighbours_and_padding_change_nothing(bert):
    """Texts alone, together, in another order, and several in a packed row."""
    texts = ["天地", "人" * 40, "马牛羊", "风", "天地"]
    together = bert.embed(texts)
    alone = np.stack([bert.embed(text) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(bert.embed(texts[::-1])[::-1], alone, atol=1e-5)
    few = plug_jax.Model(bert._saved, bert._placed, batch_size=2)
    np.testing.assert_allclose(few.embed(texts), alone, atol=1e-5)
    for one, states in zip(texts, bert.encode(texts), strict=True):
        np.testing.assert_allclose(states.states, bert.encode(one).states, atol=1e-5)

    ids = [[token.id for token in bert.encode(text).tokens] for text in texts[:3]]
    packed = {
        "tokens": np.concatenate(ids)[None],
        "positions": np.concatenate([np.arange(len(one)) for one in ids])[None],
        "segment_ids": np.repeat([1, 2, 3], [len(one) for one in ids])[None],
    }
    encode = jax.jit(functools.partial(PlugModel(bert.config).apply, method="encode"))
    tokens = jnp.asarray(packed.pop("tokens"))
    row = encode({"params": bert._placed.params}, tokens, **packed)[0]
    splits = np.cumsum([len(one) for one in ids])[:-1]
    for states, one in zip(np.split(row, splits), texts, strict=False):
        np.testing.assert_allclose(states, bert.encode(one).states, atol=1e-5)


def test_calls_of_a_kind_share_a_program(bert):
    encoder = bert._encoder
    bert.embed(["天", "地人"])
    programs = encoder._vectors._cache_size()
    bert.embed(["马" * 20, "牛" * 28])
    assert encoder._vectors._cache_size() == programs
    bert.embed(["马" * 40, "牛"])
    assert encoder._vectors._cache_size() == programs + 1


def test_texts_that_are_too_long(bert):
    text = "天 " * 70
    with pytest.raises(PlugError, match=r"has 70 tokens; .* at most 62 \(64 .*max_length=64"):
        bert.encode(text)
    with pytest.raises(PlugError, match=r"number 1 \(from 0\): the text has 70 tokens"):
        bert.embed(["天", text])
    found = bert.encode(text, max_length=10)
    assert len(found.tokens) == len(found.states) == 10
    assert found.left_out == 140 - 15  # the eighth 天 is the last that is read
    assert found.tokens[-1].piece == "[SEP]" and found.tokens[-1].start == 15
    np.testing.assert_allclose(bert.embed(text, max_length=10), bert.embed("天" * 8), atol=1e-5)
    assert bert.encode("天", max_length=10).left_out == 0
    for length in (2, 65):
        with pytest.raises(PlugError, match=f"max_length is {length}; it must be between 3 and 64"):
            bert.encode("天", max_length=length)


def test_a_text_without_a_token(bert):
    assert [token.piece for token in bert.encode(" ").tokens] == ["[CLS]", "[SEP]"]
    assert bert.embed("", pooling="cls").shape == (16,)
    for wrong in (lambda: bert.embed(" "), lambda: bert.encode("").vector()):
        with pytest.raises(PlugError, match="the text has no tokens, so its states have no mean"):
            wrong()
    assert bert.encode([]) == [] and bert.embed([]).shape == (0, 16)
    with pytest.raises(PlugError, match="pooling must be one of 'mean', 'cls', not 'max'"):
        bert.embed("天", pooling="max")


def test_masks_are_filled_by_the_head(bert, bert_files):
    config, params = golden_weights.load_structbert(bert_files)
    text = "天[MASK]人c[MASK]"
    first, second = bert.fill_mask(text, top_k=0)
    assert (text[first.start : first.end], second.start) == ("[MASK]", 9)
    v = bert.vocabulary
    ids = [v.cls_id, *v.encode("天"), v.mask_id, *v.encode("人c"), v.mask_id, v.sep_id]
    hidden = reference_model.encode(params, config, np.array([ids]))[0]
    logits = reference_model.mlm_logits(params, config, hidden)[[2, -2]]
    expected = np.exp(logits - logits.max(axis=-1, keepdims=True))
    expected /= expected.sum(axis=-1, keepdims=True)
    for mask, probabilities in zip((first, second), expected, strict=True):
        assert math.fsum(c.probability for c in mask.candidates) == pytest.approx(1, abs=1e-6)
        assert sorted(c.id for c in mask.candidates) == list(range(ROWS))
        found = [c.probability for c in sorted(mask.candidates, key=lambda c: c.id)]
        np.testing.assert_allclose(found, probabilities, atol=1e-5)
        ordered = [c.probability for c in mask.candidates]
        assert ordered == sorted(ordered, reverse=True)
        assert all(c.piece == v.id_to_piece(c.id) for c in mask.candidates[:5])
    [three] = bert.fill_mask("天[MASK]地", top_k=3)
    assert len(three.candidates) == 3


@pytest.mark.parametrize("model_type", ["char", "unigram"])
def test_spaces_beside_a_mask_are_read(tmp_path, model_type):
    """As SentencePiece does if a character stands in place of the mask."""
    texts = ["a b c ab 天地 人 你我"] * 9
    v = train_sentencepiece(texts, directory=tmp_path, vocab_size=14, model_type=model_type)
    model = SimpleNamespace(vocabulary=v, longest=99)
    for text in ("天 [MASK] 地", "[MASK] 人", "天  [MASK]地", "天[MASK]", "[MASK] [MASK]"):
        read = read_masked(model, text).ids[1:-1]
        shown = v.encode(text.replace("[MASK]", "我"))
        assert [v.mask_id if i == v.encode("我")[0] else i for i in shown] == read, text


def test_rows_of_the_table_that_are_no_piece_have_no_probability(writer):
    assert writer.vocabulary.vocab_size < writer.config.padded_vocab_size
    [mask] = writer.fill_mask("天[MASK]人", top_k=0)
    assert len(mask.candidates) == writer.vocabulary.vocab_size
    assert math.fsum(c.probability for c in mask.candidates) == pytest.approx(1, abs=1e-6)


def test_masks_alone_and_with_others(writer):
    texts = ["天[MASK]", "[MASK]人[MASK]" + "马" * 30 + "[MASK]", "风[MASK]雪"]
    together = writer.fill_mask(texts, top_k=4)
    assert [len(masks) for masks in together] == [1, 3, 1]
    for text, masks in zip(texts, together, strict=True):
        for one, other in zip(writer.fill_mask(text, top_k=4), masks, strict=True):
            assert [c.id for c in one.candidates] == [c.id for c in other.candidates]
            assert [c.probability for c in one.candidates] == pytest.approx(
                [c.probability for c in other.candidates], abs=1e-5
            )
    for wrong, message in (
        (lambda: writer.fill_mask("天"), r"there is no \[MASK\] in '天'"),
        (lambda: writer.fill_mask("[MASK]" * 47), "the text has 47 tokens; .* at most 46"),
        (lambda: writer.fill_mask("[MASK]", top_k=-1), "top_k is -1"),
    ):
        with pytest.raises(PlugError, match=message):
            wrong()


def test_a_model_that_writes_encodes_with_the_same_parameters(stage2, writer):
    encoder = writer._encoder
    assert encoder.params.keys().isdisjoint({"decoder"})
    leaves = jax.tree.leaves(encoder.params)
    assert {id(leaf) for leaf in leaves} <= {
        id(leaf) for leaf in jax.tree.leaves(writer._placed.params)
    }
    alone = EncoderModel.load(stage2)
    assert "decoder" not in alone.params
    ids = [[token.id for token in writer.encode("天地").tokens]]
    np.testing.assert_array_equal(alone.states(ids)[0], writer.encode("天地").states)
    params = lively_params(CONFIG)
    expected = reference_model.encode(params, CONFIG, np.array(ids))[0]
    np.testing.assert_allclose(writer.encode("天地").states, expected, atol=1e-4)


def test_a_converted_plug_reads_and_writes(bert_files, tmp_path):
    """Its encoder applies its final norm twice, as in the released inference code."""
    config = weights.plug_config(max_positions=64)
    (tmp_path / "plug").mkdir()
    tensors = weights.state_dict(config, "plug", rows=96)
    save_file(tensors, tmp_path / "plug" / "model.safetensors")
    described = {"model_type": "plug", "num_attention_heads": 4, "vocab_size": ROWS}
    (tmp_path / "plug" / "config.json").write_text(json.dumps(described))
    shutil.copy(bert_files / "vocab.txt", tmp_path / "plug")
    import_weights(open_hf(tmp_path / "plug"), tmp_path / "model", ImportOptions())
    model = plug_jax.load(tmp_path / "model")
    assert model.config.encoder_final_norm_repeats == 2
    found = model.encode("天地人")
    ids = np.array([[token.id for token in found.tokens]])
    params = {name: part for name, part in model._placed.params.items() if name != "decoder"}
    expected = reference_model.encode(jax.device_get(params), model.config, ids)[0]
    np.testing.assert_allclose(found.states, expected, atol=1e-4)
    assert len(model.fill_mask("天[MASK]人")[0].candidates) == 5
    [text] = model.generate("天地", max_new_tokens=4)
    assert math.isfinite(text.log_prob)


def test_heads_that_were_initialised_anew_fill_nothing(bert_files, tmp_path):
    import_weights(open_hf(bert_files), tmp_path / "model", ImportOptions(fresh=("mlm_head",)))
    with pytest.raises(PlugError, match="newly initialised when it was converted"):
        plug_jax.load(tmp_path / "model").fill_mask("天[MASK]")


def test_no_numbers(writer):
    broken = jax.tree.map(lambda leaf: leaf * math.nan, writer._placed.params)
    encoder = EncoderModel(writer.config, broken, writer.vocabulary)
    model = plug_jax.Model(writer._saved, encoder)
    for wrong in (
        lambda: model.encode("天"),
        lambda: model.embed("天"),
        lambda: model.fill_mask("[MASK]"),
    ):
        with pytest.raises(plug_jax.NoNumbersError):
            wrong()


def test_rows_of_a_job(stage2, writer, tmp_path):
    rows = [Row({"text": "天地", "id": 7}), Row({"text": "马" * 60}), Row({"n": 1})]
    rows += [Row({"sentence": "人"})]
    options = EmbeddingOptions(normalize=True)
    found = list(run(Job(checkpoint=str(stage2), rows=rows), Embedding(options=options)))
    assert found[0].keys() == {"text", "id", "embedding"}
    expected = writer.embed(["天地", "人"], options)
    stored = json.loads(json.dumps([found[0]["embedding"], found[3]["embedding"]]))
    np.testing.assert_allclose(np.array(stored, np.float32), expected, atol=1e-6)
    assert "has 60 tokens" in found[1]["error"] and "no field 'text'" in found[2]["error"]
    cut = Embedding(options=EmbeddingOptions(max_length=12))
    found = list(run(Job(checkpoint=str(stage2), rows=rows[:2]), cut))
    assert "left_out" not in found[0] and found[1]["left_out"] == 50

    rows = [Row({"text": "天[MASK]"}), Row({"text": "天"})]
    job = Job(checkpoint=str(stage2), rows=rows, output=str(tmp_path / "out.jsonl"))
    found = list(run(job, MaskFilling(options=MaskOptions(top_k=2))))
    [mask] = writer.fill_mask("天[MASK]", top_k=2)
    assert [c["piece"] for c in found[0]["masks"][0]["candidates"]] == [
        c.piece for c in mask.candidates
    ]
    assert "there is no [MASK]" in found[1]["error"]


@pytest.mark.parity
def test_the_same_as_transformers(bert, structbert, tmp_path):
    """Tokens, offsets, hidden states and candidates of a converted BERT, from its text."""
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    export_hf(structbert, tmp_path / "out")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(tmp_path / "out")
    model = transformers.BertForPreTraining.from_pretrained(tmp_path / "out").eval()
    for text in (TEXT, "天地AB c，  人", "ab é天xyz"):
        theirs = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
        offsets = theirs.pop("offset_mapping")[0].tolist()
        ours = bert.encode(text)
        assert [token.id for token in ours.tokens] == theirs["input_ids"][0].tolist()
        assert [[t.start, t.end] for t in ours.tokens[1:-1]] == offsets[1:-1]
        with torch.no_grad():
            states = model.bert(**theirs).last_hidden_state[0].numpy()
        np.testing.assert_allclose(ours.states, states, atol=1e-4)
    text = "天[MASK]人"
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).prediction_logits[0, 2]
    best = torch.softmax(logits, dim=-1).topk(5)
    [mask] = bert.fill_mask(text)
    assert [c.id for c in mask.candidates] == best.indices.tolist()
    assert [c.probability for c in mask.candidates] == pytest.approx(best.values.tolist(), abs=1e-5)
