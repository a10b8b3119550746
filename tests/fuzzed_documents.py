"""Hostile documents, to see that what reads text neither fails nor loses count."""

from __future__ import annotations

import random
from collections.abc import Callable

_CHINESE = "天亮了我们去学校的路上看见一只白猫它在屋顶晒太阳"
_SENTENCES = "天亮了。我们去学校！“猫在哪儿？”他问，没有人回答……\n下雨；回家。"
_SPACES = " \t\r\n\v\f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"
_PUNCTUATION = "。，、；：？！…—“”‘’「」『』（）《》【】·～.,;:?!'\"()[]{}<>@#$%^&*_-+=|\\/`~"
_FORMAT = "\ufeff\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2066\u2069\xad\u2060\U000e0041"
_ODD = "\ufffd\ufffe\uffff\ufdd0\ufffc\ue000\U0010ffff\U000f0000\u0378\u3164\u034f\u061c"
_EMOJI = ("👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇨🇳", "1️⃣", "😀", "❤️", "‼️", "👩🏿‍🚀")
_RIGHT_TO_LEFT = "שלום עולם مرحبا بالعالم، هل أنت هنا؟ 123 \u202eabc\u202c"
_SPECIALS = (
    *("[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "[unused1]", "##的", "<s>", "</s>", "<pad>"),
    *("<unk>", "<0x00>", "▁", " ⁇ ", "<extra_id_0>"),
)
# Invalid UTF-8, each for a different reason.
_INVALID = (
    *(
        b"\x80",
        b"\xff",
        b"\xfe\xff",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
    ),
    *(b"\xe5\xa4", b"\xf0\x9f\x98", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xed\xa0\x80"),
)


def fuzzed_documents(count: int, seed: int, long_line_bytes: int) -> list[bytes]:
    """Documents that a crawl of the web might hand over, and some that it would not.

    Most kinds are bad in one way: random bytes, UTF-8 that is cut, overlong or holds surrogates
    (alone, or paired as in CESU-8), GBK, Big5 and UTF-16 pieces, NULs and other controls, nothing
    but spaces, marks or closing quotes, one character, or one a thousand times, spelled special
    pieces, joined emoji, text from right to left, stacked accents, words without an end, JSON and
    HTML. Others join a few of these. Two kinds are ordinary text, so that something is left.

    Args:
      count: number of documents. Each kind appears about equally often, from about 30 on.
      seed: the same documents for the same seed.
      long_line_bytes: length of three of them, without a line feed: one character over and over,
        Chinese without a stop, and short sentences. Not quite: it is cut to whole characters.
        They are somewhere among the first, the second and the last third.

    Returns:
      The documents, in any encoding or none; they may hold line feeds or be empty.
    """
    rng = random.Random(seed)
    kinds = [_KINDS[i % len(_KINDS)] for i in range(count)]
    rng.shuffle(kinds)
    documents = [kind(rng) for kind in kinds]
    for i, unit in enumerate(("哈", _CHINESE, "天亮了。我们去学校！")):
        if count >= 3:
            place = rng.randrange(i * count // 3, (i + 1) * count // 3)
            encoded = unit.encode()
            line = encoded * (long_line_bytes // len(encoded) + 1)
            documents[place] = line[:long_line_bytes].decode(errors="ignore").encode()
    return documents


def _text(rng: random.Random, alphabet: str, longest: int = 60) -> bytes:
    return "".join(rng.choices(alphabet, k=rng.randint(1, longest))).encode()


def _pieces(rng: random.Random, *pieces: bytes, most: int = 12) -> bytes:
    return b"".join(rng.choices(pieces, k=rng.randint(1, most)))


def _article(rng: random.Random) -> bytes:
    sentences = [_text(rng, _CHINESE, 40) + rng.choice("。！？；").encode() for _ in range(40)]
    return b"".join(sentences[: rng.randint(1, 40)])


def _any_character(rng: random.Random) -> str:
    code = rng.choice([rng.randrange(0x80), rng.randrange(0x10000), rng.randrange(0x110000)])
    return chr(code) if not 0xD800 <= code < 0xE000 else "\0"


def _mixture(rng: random.Random) -> bytes:
    return b"".join(kind(rng) for kind in rng.choices(_KINDS[:-1], k=rng.randint(2, 5)))


def _surrogates(rng: random.Random) -> bytes:
    pieces = ("\ud83d\ude00", "\ud83d", "\udc00", "天亮", "。")
    return _pieces(rng, *(piece.encode("utf-8", "surrogatepass") for piece in pieces))


_KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    _article,
    lambda rng: rng.choice([_SENTENCES, f"  {_SENTENCES}\r\n\r\n{_SENTENCES}"]).encode(),
    lambda rng: b"",
    lambda rng: _text(rng, _SPACES),
    lambda rng: rng.randbytes(rng.randint(1, 200)),
    lambda rng: _pieces(rng, *_INVALID, "天亮了。".encode()),
    _surrogates,
    lambda rng: _pieces(rng, b"\0", "天".encode()),
    lambda rng: _text(rng, "".join(map(chr, range(0x20))) + "\x7f\x80\x9f天"),
    lambda rng: _text(rng, _PUNCTUATION),
    lambda rng: _text(rng, "”’」』）)\"'。！"),
    lambda rng: _pieces(rng, _SENTENCES.encode("gbk"), "天".encode()),
    lambda rng: _pieces(rng, "我們去學校。".encode("big5"), b"ok "),
    lambda rng: _pieces(rng, _SENTENCES.encode("utf-16"), "天".encode("utf-16-be")),
    lambda rng: _article(rng)[: rng.randint(1, 100)],  # may end within a character
    lambda rng: _pieces(rng, *(emoji.encode() for emoji in _EMOJI)),
    lambda rng: _RIGHT_TO_LEFT.encode() * rng.randint(1, 5),
    lambda rng: _pieces(rng, *(special.encode() for special in _SPECIALS), "天亮".encode()),
    lambda rng: _any_character(rng).encode(),
    lambda rng: _any_character(rng).encode() * rng.choice([10, 1000, 5000]),
    lambda rng: "".join(_any_character(rng) for _ in range(50)).encode(),
    lambda rng: _text(rng, _FORMAT + "天"),
    lambda rng: _text(rng, _ODD + "亮"),
    lambda rng: ("天" + "\u0301\u0336\u20dd" * rng.randint(1, 300)).encode(),
    lambda rng: b"Donaudampfschifffahrt" * rng.randint(1, 300),
    lambda rng: _text(rng, "ＡＢＣａｂｃ０１２３　①㎏ﷺ｡ﾊ漢語頭髮", 200),
    lambda rng: b'{"text": "' + _pieces(rng, b'\\"', b"\\ud83d", b"\\u0000", b"]}", b"&nbsp;<p>"),
    lambda rng: b"3.14159 https://example.org/?q=1;r=2 v2.0!=3 " * rng.randint(1, 20),
    lambda rng: "\n".join(["天亮了。"] * rng.randint(1, 300)).encode(),
    _mixture,
)
