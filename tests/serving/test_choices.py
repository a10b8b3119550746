"""The chunks of a growing text, and the tokens sent with each."""

from plug_jax.inference.generator import GeneratedText
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.serving.choices import Choice
from plug_jax.serving.engine import TextProgress, TextTask

PIECES = ["ab", "cd", "e", "## "]


def decode(ids):
    """Words separated by spaces, as in WordPiece; "## " is the first byte of a character."""
    return " ".join(PIECES[i] for i in ids).replace(" ## ", "\N{REPLACEMENT CHARACTER}")


def progress(ids, finish_reason=None):
    log_probs = [-0.5 - i for i in range(len(ids))]
    text = GeneratedText(ids, decode(ids), log_probs, 0.0, 0.0, finish_reason == "stop")
    return TextProgress(text, finish_reason)


def choice_of(stop):
    job = TextTask(prompt="", options=GenerationOptions(), notify=lambda: None, stop=stop)
    return job, Choice(3, job, decode, logprobs=True)


def test_a_part_has_the_tokens_that_begin_in_its_text():
    job, choice = choice_of(stop=("cd ab",))
    assert choice.more() is None
    job.progress = progress([0, 1])
    assert choice.more() == {
        "index": 3,
        "text": "ab ",  # "cd" may be the beginning of the stop string
        "logprobs": {
            "tokens": ["ab", " cd"],
            "token_logprobs": [-0.5, -1.5],
            "top_logprobs": None,
            "text_offset": [0, 2],
        },
        "finish_reason": None,
    }
    assert choice.more() is None
    job.progress = progress([0, 1, 1, 2], "length")
    last = choice.more()
    assert (last["text"], last["finish_reason"]) == ("cd cd e", "length")
    assert last["logprobs"]["tokens"] == [" cd", " e"]
    assert last["logprobs"]["token_logprobs"] == [-2.5, -3.5]
    assert last["logprobs"]["text_offset"] == [5, 8]
    assert choice.more() is None


def test_what_is_held_back_is_no_part():
    job, choice = choice_of(stop=("e x",))
    job.progress = progress([2])
    assert choice.more() is None
    job.progress = progress([2, 1])
    part = choice.more()
    assert part["text"] == "e cd"
    assert part["logprobs"]["tokens"] == ["e", " cd"]


def test_tokens_wait_for_their_text():
    job, choice = choice_of(stop=("ab cd e",))
    job.progress = progress([2, 0, 1])
    part = choice.more()
    assert part["text"] == "e "
    assert part["logprobs"]["tokens"] == ["e", " ab"]
    job.progress = progress([2, 0, 1], "stop")
    assert choice.more()["logprobs"]["tokens"] == [" cd"]


def test_an_incomplete_character_waits():
    job, choice = choice_of(stop=())
    job.progress = progress([0, 3])
    assert choice.more()["text"] == "ab"
    job.progress = progress([0, 3], "length")
    assert choice.more()["text"] == "\N{REPLACEMENT CHARACTER}"


def test_a_text_that_no_longer_begins_with_what_was_sent_adds_nothing_to_it():
    """As where a later token changes an earlier character: nothing wrong follows."""
    job, choice = choice_of(stop=())
    job.progress = progress([0, 1])
    assert choice.more()["text"] == "ab cd"
    job.progress = progress([2, 1, 0])
    assert choice.more() is None
    job.progress = progress([0, 1, 2], "length")
    assert choice.more()["text"] == " e"


def test_offsets_count_whole_characters():
    """As with byte fallback: a character in three or four tokens is one character of the text."""
    pieces = ["今".encode(), *bytes_of("龘"), "天".encode(), *bytes_of("😀"), "北".encode()]
    ids = list(range(len(pieces)))

    def decode_bytes(ids):
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    job = TextTask(prompt="", options=GenerationOptions(), notify=lambda: None, stop=())
    choice, offsets, sent = Choice(0, job, decode_bytes, logprobs=True), [], ""
    for count in range(1, len(pieces) + 1):
        text = GeneratedText(ids[:count], decode_bytes(ids[:count]), [-1.0] * count, 0, 0, False)
        job.progress = TextProgress(text, "length" if count == len(pieces) else None)
        if part := choice.more():
            sent += part["text"]
            offsets += part["logprobs"]["text_offset"]
            assert max(offsets) < len(sent)  # every token begins in what was sent
    assert sent == "今龘天😀北"
    assert offsets == [0, 1, 1, 1, 2, 3, 3, 3, 3, 4]


def bytes_of(character):
    return [bytes([one]) for one in character.encode()]
