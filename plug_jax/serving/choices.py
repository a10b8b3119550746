"""The texts of a response in OpenAI's format, complete or streamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from plug_jax.inference.generator import GeneratedText
from plug_jax.serving import stops
from plug_jax.serving.engine import TextTask

_CONTEXT = 8  # preceding tokens that may affect a token's text
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Choice:
    """One text of a response, and how much of it has been sent."""

    def __init__(
        self, index: int, job: TextTask, decode: Callable[[Sequence[int]], str], *, logprobs: bool
    ) -> None:
        self.job = job
        self._index = index
        self._decode = decode
        self._logprobs = logprobs
        self._sent = ""
        self._tokens = 0  # sent
        self._offset = 0  # characters of these
        self._done = False

    def more(self) -> dict[str, Any] | None:
        """What is new since the last call; None if nothing is.

        The concatenated parts do not depend on how often it is called. A part ends before anything
        that may still become a stop string or another character.
        """
        progress = self.job.progress
        if progress is None or self._done:
            return None
        text, self._done = progress.text.text, progress.finish_reason is not None
        if not self._done:
            text = stops.certain(text, self.job.stop)
        new = text[len(self._sent) :] if text.startswith(self._sent) else ""
        if not new and not self._done:
            return None
        self._sent += new
        log_probs = self._log_probs(progress.text) if self._logprobs else None
        return {
            "index": self._index,
            "text": new,
            "logprobs": log_probs,
            "finish_reason": progress.finish_reason,
        }

    def _log_probs(self, text: GeneratedText) -> dict[str, Any]:
        """Log-probabilities of tokens that begin in the sent text; at the end, of all others."""
        tokens: list[str] = []
        offsets: list[int] = []
        first = self._tokens
        while self._tokens < len(text.ids) and (self._done or self._offset < len(self._sent)):
            token, added = self._token(text.ids, self._tokens)
            tokens.append(token)
            offsets.append(self._offset)
            self._tokens += 1
            self._offset += added
        return {
            "tokens": tokens,
            "token_logprobs": text.log_probs[first : self._tokens],
            "top_logprobs": None,
            "text_offset": offsets,
        }

    def _token(self, ids: Sequence[int], place: int) -> tuple[str, int]:
        """What a token adds: its text, and the number of whole characters.

        Of a character in several tokens only the last adds it; the others show as U+FFFD.
        """
        before = ids[max(0, place - _CONTEXT) : place]
        shorter = self._decode(before)
        longer = self._decode([*before, ids[place]])
        added = len(longer.rstrip(_INCOMPLETE)) - len(shorter.rstrip(_INCOMPLETE))
        return longer[len(shorter) :] if longer.startswith(shorter) else "", added


def usage(prompt_tokens: int, texts: Sequence[GeneratedText]) -> dict[str, int]:
    """Prompt tokens, once per prompt, and generated tokens, without [CLS] and [SEP]."""
    written = sum(len(text.ids) for text in texts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }
