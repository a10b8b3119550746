"""The texts of an answer in OpenAI's form, whole or as they grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from plug_jax.inference.generator import GeneratedText
from plug_jax.serving import stops
from plug_jax.serving.engine import Job

_CONTEXT = 8  # tokens before a token that may change how it reads


class Choice:
    """One text of an answer, and how much of it was handed out."""

    def __init__(
        self, index: int, job: Job, decode: Callable[[Sequence[int]], str], *, logprobs: bool
    ) -> None:
        self.job = job
        self._index = index
        self._decode = decode
        self._logprobs = logprobs
        self._sent = ""
        self._tokens = 0  # handed out
        self._offset = 0  # characters of these
        self._done = False

    def more(self) -> dict[str, Any] | None:
        """What is new since the last call; None if nothing is.

        However often it is called while the text grows, the parts make up the same whole. A part
        ends before what may yet become a stop string or another character.
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
        """Of the tokens that begin in what was handed out; at the end, of all that are left."""
        tokens: list[str] = []
        offsets: list[int] = []
        first = self._tokens
        while self._tokens < len(text.ids) and (self._done or self._offset < len(self._sent)):
            token = self._token(text.ids, self._tokens)
            tokens.append(token)
            offsets.append(self._offset)
            self._tokens += 1
            self._offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": text.log_probs[first : self._tokens],
            "top_logprobs": None,
            "text_offset": offsets,
        }

    def _token(self, ids: Sequence[int], place: int) -> str:
        """What a token adds to the text."""
        before = ids[max(0, place - _CONTEXT) : place]
        shorter = self._decode(before)
        longer = self._decode([*before, ids[place]])
        return longer[len(shorter) :] if longer.startswith(shorter) else ""


def usage(prompt_tokens: int, texts: Sequence[GeneratedText]) -> dict[str, int]:
    """Tokens read, each prompt once, and written; [CLS] and [SEP] are not counted."""
    written = sum(len(text.ids) for text in texts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }
