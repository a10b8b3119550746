"""The report page: well-formed, self-contained, escaped, and with the statistics on it."""

import html.parser
import re

import numpy as np
import pytest

from plug_jax.data.drops import reset_counts
from plug_jax.data.preprocessors.lengths import sample_lengths
from plug_jax.data.preprocessors.masking import masked_language_model
from plug_jax.data.preprocessors.sentence_order import sentence_pairs
from plug_jax.data.preprocessors.word_order import shuffle_windows
from plug_jax.data.task_settings import TaskSettings
from plug_jax.objectives.examples import Fate, Section, TextSpan
from plug_jax.objectives.shares import Share
from plug_jax.objectives.stages import PALM, STRUCTBERT
from plug_jax.task_reports.counting import count_examples
from plug_jax.task_reports.decoded_examples import DecodedExample, decode_example
from plug_jax.task_reports.page import interval, length_figure, render_report, write_report
from plug_jax.task_reports.statistics import Lengths, Subject, TaskStatistics
from tests.inspected_examples import STAGE1, STAGE2, make_vocabulary, to_ids

SUBJECT = Subject("my_task", "validation", 7, "WordPiece", "encoder=16", "2020-01-31 12:00:00")
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Checks nesting, and collects tags, ids, links and texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.references, self.texts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.references.append(value)
            else:
                self.references += re.findall(r"url\((.*?)\)", value or "")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(" ".join(data.split()))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return make_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def report(examples, objectives, vocabulary, settings):
    reset_counts()
    examples = [to_ids(example) for example in examples]
    statistics = count_examples(examples, objectives, vocabulary, settings)
    return render_report(
        SUBJECT,
        statistics,
        [decode_example(example, objectives, vocabulary) for example in examples],
    )


@pytest.fixture(scope="module")
def stage1(vocabulary):
    settings = TaskSettings(
        {
            masked_language_model: {"mask_rate": 0.4},
            shuffle_windows: {"rate": 0.05, "window": 3, "label_moved_only": False},
            sentence_pairs: {"max_length": 9},
        }
    )
    return report(STAGE1, STRUCTBERT, vocabulary, settings)


@pytest.fixture(scope="module")
def stage2(vocabulary):
    settings = TaskSettings({sample_lengths: {"min_length": 3, "max_length": 4}})
    return report(STAGE2, PALM, vocabulary, settings)


def test_the_page_is_well_formed_and_needs_nothing_else(stage1, stage2):
    for text in (stage1, stage2):
        page = Page(text)
        assert {"h1", "svg", "table", "mark"} <= {*page.tags}
        assert not {"script", "link", "img", "iframe", "object", "embed"} & {*page.tags}
        assert "http:" not in text and "https:" not in text and "@import" not in text
        assert page.references and all(reference[0] == "#" for reference in page.references)
        assert {reference[1:] for reference in page.references} <= {*page.ids}
        assert len(page.ids) == len({*page.ids})  # also across the figures of both sides


def test_the_page_says_what_was_counted(stage1):
    texts = Page(stage1).texts
    for text in ("my_task", "validation", "7", "WordPiece", "encoder=16", "2020-01-31 12:00:00"):
        assert text in texts
    assert "What this task feeds the model, counted over 2 examples." in texts
    assert "40.00%" in texts and "2: B precedes A" in " ".join(texts)


def test_what_disagrees_is_marked_without_colour(stage1):
    """An example of 11 tokens where 9 were wanted."""
    text = re.sub(r"\s+", " ", stage1)
    assert '<b aria-hidden="true">✗</b> outside</span>: encoder length' in text
    assert "1 shorter or longer than asked." in text
    assert '<b aria-hidden="true">✓</b> within</span>' in text


def test_marks_of_examples(stage1, stage2):
    for mark in (
        '<mark class="shuffled">天地人<i>~人天地</i></mark>',
        '<mark class="masked">你</mark>',
        '<mark class="kept">我<i>=</i></mark>',
        '<mark class="replaced">play<i>→well</i></mark>ing <mark class="masked">well</mark>',
        '<span class="unknown">[UNK]</span>',
    ):
        assert mark in stage1
    assert '<div class="text decoder">' in stage2 and '<div class="text decoder">' not in stage1
    assert "shuffled: it sees" in stage1 and "shuffled: it sees" not in stage2


def test_text_that_looks_like_markup_is_escaped(vocabulary):
    evil = "<script>alert('x')</script>&\""
    span, fact = TextSpan(evil, evil), ("label", evil)
    marked = [TextSpan(evil, evil, fate) for fate in Fate]
    example = DecodedExample((fact,), (Section(evil, (span, *marked)),))
    statistics = TaskStatistics(
        1, (Lengths(evil, (0, 1)),), (Share("k", evil, 0, 1, evil, 0.5, evil),), None, None,
        {evil: 1}, {evil: 1},
    )  # fmt: skip
    subject = Subject(evil, evil, 0, evil, evil, evil)
    text = render_report(subject, statistics, [example, DecodedExample((fact,), ())])
    page = Page(text)
    assert "script" not in page.tags and "<script" not in text
    # Title, head, tables, summary, examples: nothing else was left out.
    assert sum(evil in part for part in page.texts) > 15


def test_a_task_with_other_features_has_a_page_too(tmp_path):
    statistics = TaskStatistics(2, (Lengths("inputs", (0, 1, 1)),), (), None, None, {}, {})
    example = DecodedExample((("inputs", "(2) 天地"), ("score", "0.5")), ())
    path = tmp_path / "page.html"
    write_report(path, SUBJECT, statistics, [example])
    page = Page(path.read_text(encoding="utf-8"))
    assert {"inputs", "(2) 天地", "score", "0.5"} <= {*page.texts}
    assert "Nothing was dropped." in page.texts
    assert "Rates" not in page.texts and "Vocabulary" not in page.texts


def test_an_interval_has_its_target_in_the_middle():
    share = Share("k", "l", 17, 100, "cases", 0.15)
    place = interval(share)
    assert place["target"] == 60
    assert 0 < place["low"] < place["target"] < place["value"] < place["high"] < 120
    low, high = share.bounds
    scale = (place["value"] - 60) / 0.02
    assert place["low"] == pytest.approx(60 + scale * (low - 0.15))
    assert place["high"] == pytest.approx(60 + scale * (high - 0.15))
    assert interval(Share("k", "l", 0, 100, "cases", 0.0)) is None
    assert interval(Share("k", "l", 0, 100, "cases")) is None


@pytest.mark.parametrize(
    ("values", "low", "high", "uniform"),
    [
        ([40, 50, 128], 32, 128, True),
        ([3, 9], 4, 6, True),  # exceeded on both sides
        ([5, 6, 300], None, 128, False),
        ([7], None, None, False),
        ([0], None, None, False),
        ([12] * 50, 12, 12, True),
    ],
)
def test_a_figure_for_any_lengths(values, low, high, uniform):
    counts = tuple(np.bincount(values).tolist())
    figure = str(length_figure(Lengths("encoder", counts, low, high, uniform)))
    page = Page(figure)
    assert figure.startswith('<svg role="img" aria-label="Histogram of the encoder lengths"')
    assert "var(--bar)" in figure and "currentColor" in figure and "#0100" not in figure
    assert ("var(--asked)" in figure) == (high is not None)
    assert ("var(--band)" in figure) == uniform
    assert {"tokens", "examples"} <= {*page.texts}
    assert "font" not in figure  # the page's
