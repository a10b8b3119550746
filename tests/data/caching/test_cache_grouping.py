"""Which documents of a split deduplication drops."""

import numpy as np
import pytest
import tensorflow as tf

from plug_jax.data.caching import deduplication
from plug_jax.data.caching import run as caching
from plug_jax.data.caching.deduplication import Deduplication
from plug_jax.data.caching.grouping import passes
from plug_jax.data.caching.shards import EXACT, KEPT, NEAR, drop_duplicates
from plug_jax.data.drops import drop_counts, reset_counts
from tests.cached_corpus import (
    CHARACTERS,
    FILES,
    cache,
    digests,
    random_text,
    statistics_of,
    task_of,
    texts_of,
    vocabulary_of,
    write_corpus,
)


def test_dropping_as_in_the_docstring():
    reset_counts()
    blocks = tf.data.Dataset.from_tensor_slices([["甲", "甲"], ["乙", "乙。"]])
    fates = np.array([KEPT, EXACT, KEPT, NEAR], np.uint8)
    left = drop_duplicates(blocks.map(lambda text: {"text": text}), fates=fates)
    texts = [[text.decode() for text in block["text"]] for block in left.as_numpy_iterator()]
    assert texts == [["甲"], ["乙"]]
    assert drop_counts() == {"exact_duplicate": 1, "near_duplicate": 1}


@pytest.fixture
def repetitive(tmp_path):
    """Documents by name, and a corpus of them in which some are repeated across files."""
    rng = np.random.default_rng(3)
    a, b, c, d, e = (random_text(rng, 60) for _ in range(5))
    near_a = a[:-2] + "一。"  # 5 of 57 pieces differ
    far_b = b[:30] + c[:30]
    short = "天地。"
    source = write_corpus(
        tmp_path / "corpus", [[b, short, a, c], [d, b, near_a, far_b], [a, short, d, e, near_a]]
    )
    names = dict(a=a, b=b, c=c, d=d, e=e, near_a=near_a, far_b=far_b)
    return task_of(source, vocabulary_of(tmp_path)), {text: name for name, text in names.items()}


def left_in(directory, task, names):
    shards = texts_of(directory, task.output_features["tokens"].vocabulary)
    return [" ".join(names[text] for text in shard) for shard in shards]


def test_the_first_of_equal_documents_stays(repetitive, tmp_path):
    task, names = repetitive
    cache(task, tmp_path / "caches", deduplicate=Deduplication())
    assert left_in(tmp_path / "caches", task, names) == ["b a c", "d near_a far_b", "e"]
    statistics = statistics_of(tmp_path / "caches")
    assert statistics["drops"] == {"exact_duplicate": 4, "too_short_text": 2}
    assert statistics["documents"] == 13
    assert statistics["documents_used"] == 7


def test_the_first_of_similar_documents_stays_even_after_an_interruption(
    repetitive, tmp_path, monkeypatch
):
    def interrupted(*unused):
        raise RuntimeError("interrupted")

    task, names = repetitive
    settings = Deduplication(near_threshold=0.7)
    monkeypatch.setattr(caching, "group_similar", interrupted)
    with pytest.raises(RuntimeError, match="interrupted"):
        cache(task, tmp_path / "caches", deduplicate=settings)
    monkeypatch.undo()

    found = tmp_path / "caches" / "small" / "duplicates.train"
    (found / "00001.json").unlink()
    times = [(found / f"0000{i}.signatures.npy").stat().st_mtime_ns for i in range(FILES)]
    sketched = []
    remove = caching.remove_sketches

    def look_and_remove(work):
        for i in range(FILES):
            if (found / f"0000{i}.signatures.npy").stat().st_mtime_ns != times[i]:
                sketched.append(i)
        remove(work)

    monkeypatch.setattr(caching, "remove_sketches", look_and_remove)
    cache(task, tmp_path / "caches", deduplicate=settings)
    assert sketched == [1]
    assert left_in(tmp_path / "caches", task, names) == ["b a c", "d far_b", "e"]
    statistics = statistics_of(tmp_path / "caches")
    assert statistics["drops"] == {
        "exact_duplicate": 4,
        "near_duplicate": 1,
        "too_short_text": 2,
    }
    assert statistics["documents"] == 13
    assert statistics["documents_used"] == 6
    assert sorted(path.name for path in found.glob("*.npy")) == [
        f"0000{i}.fates.npy" for i in range(FILES)
    ]


def test_passes_find_what_one_finds(repetitive, tmp_path, monkeypatch):
    """With small passes, exact and near duplicates fall into different passes.

    Each shard's signatures are hashed once.
    """
    found = {"equal": [], "similar": []}
    hashed = []

    def noted(name, group):
        def run(pipeline, work, share):
            found[name].append(share)
            group(pipeline, work, share)

        monkeypatch.setattr(caching, f"group_{name}", run)

    task, names = repetitive
    settings = Deduplication(near_threshold=0.7)
    cache(task, tmp_path / "once", deduplicate=settings)
    noted("equal", caching.group_equal)
    noted("similar", caching.group_similar)
    band_keys = deduplication.band_keys
    monkeypatch.setattr(deduplication, "band_keys", lambda *a: [hashed.append(1), band_keys(*a)][1])
    monkeypatch.setattr(caching, "_EQUAL_AT_ONCE", 4)
    monkeypatch.setattr(caching, "_SIMILAR_AT_ONCE", 2)
    cache(task, tmp_path / "often", deduplicate=settings)
    assert (len(found["equal"]), len(found["similar"])) == (3, 6)  # of 11 documents, cleaned
    assert len(hashed) == FILES
    assert not list((tmp_path / "often").rglob("*.bands.npy"))
    assert left_in(tmp_path / "often", task, names) == ["b a c", "d far_b", "e"]
    assert digests(tmp_path / "often") == digests(tmp_path / "once")
    assert statistics_of(tmp_path / "often") == statistics_of(tmp_path / "once")


def test_a_pass_has_all_documents_of_its_keys():
    rng = np.random.default_rng(0)
    documents = rng.integers(0, 1 << 63, (500, 4), np.uint64)
    documents[250:, :2] = documents[:250, :2]
    parts = [documents[share.has(documents[:, 1])] for share in passes(500, 70)]
    assert len(parts) == 8 and sum(map(len, parts)) == 500
    assert max(map(len, parts)) < 2 * 500 / 8
    keys = [{tuple(key) for key in part[:, :2].tolist()} for part in parts]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 250
    assert len(passes(0, 70)) == len(passes(70, 70)) == 1
    assert len(passes(10**9, 70)) == 256


def test_near_duplicates_against_counted_similarities(tmp_path):
    """Pairs above the threshold are dropped, pairs below are kept, within MinHash's error."""
    rng = np.random.default_rng(4)
    files, pairs = [[], []], []
    for number in range(60):
        text = random_text(rng, 200)
        letters = list(text)
        for place in rng.choice(200, 1 + number // 4, replace=False):
            letters[place] = str(rng.choice(CHARACTERS))
        other = "".join(letters)
        pieces = [{t[i : i + 5] for i in range(len(t) - 4)} for t in (text, other)]
        pairs.append((other, len(pieces[0] & pieces[1]) / len(pieces[0] | pieces[1])))
        files[0].append(text)
        files[1].append(other)
    task = task_of(write_corpus(tmp_path / "corpus", files), vocabulary_of(tmp_path))
    cache(task, tmp_path / "caches", deduplicate=Deduplication(near_threshold=0.7))
    first, second = texts_of(tmp_path / "caches", task.output_features["tokens"].vocabulary)
    assert first == files[0]
    gone = {text for text in files[1] if text not in second}
    clear = [(text, true) for text, true in pairs if abs(true - 0.7) > 0.12]
    assert sum(true > 0.7 for _, true in clear) > 10 < sum(true < 0.7 for _, true in clear)
    for text, true in clear:
        assert (text in gone) == (true > 0.7), true
