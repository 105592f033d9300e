"""From tokens to text as they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_PARTIAL = "\ufffd"


class TextPieces:
    """Turns tokens into text, one at a time, without decoding the whole answer each time.

    A token's text can depend on the token before it (spaces), so it is the difference between two decoded stretches,
    both of which begin at the last token that ended a whole character.

    Args:
        tokenizer: a fast tokenizer.
        stop: strings at which the text ends.

    Attributes:
        stopped: a stop string has come; the text ends before it.

    Example:
        >>> class Letters:
        ...     def decode(self, ids, skip_special_tokens):
        ...         return "".join("abc"[i] for i in ids)
        >>> pieces = TextPieces(Letters(), stop=["bc"])
        >>> [pieces.add(token) for token in (0, 1, 2)], pieces.stopped
        (['a', '', ''], True)
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._from = self._read = 0
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self.stopped = False

    def add(self, token: int) -> str:
        """Take the next token; return the text that is certain now, perhaps none."""
        self._ids.append(token)
        known = self._decode(self._from, self._read)
        text = self._decode(self._from, len(self._ids))
        # A token without text (a special one) is no place to begin a stretch: decoders drop the space at the start.
        if text.endswith(_PARTIAL) or len(text) <= len(known):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return self._release(text[len(known) :])

    def finish(self) -> str:
        """Return what was held back; there will be no more tokens."""
        if self.stopped:
            return ""
        known = self._decode(self._from, self._read)
        rest = self._decode(self._from, len(self._ids))[len(known) :]
        self._from = self._read = len(self._ids)
        released = self._release(rest)
        if self.stopped:
            return released
        held, self._held = self._held, ""
        return released + held

    def _decode(self, start: int, end: int) -> str:
        if start == end:
            return ""
        return self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        text = self._held + text
        places = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def token_texts(tokenizer: Any, tokens: Iterable[int]) -> list[str]:
    """Return the text of each of some tokens as it is within a text.

    At the beginning of a text SentencePiece's decoders drop a space, so each is decoded behind the end-of-text token.

    Args:
        tokenizer: a fast tokenizer.
        tokens: ids; one that is part of a character gives the replacement character.

    Example:
        >>> class Words:
        ...     eos_token_id = 0
        ...     def decode(self, ids):
        ...         return "".join(["</s>", " a", " cat", "s"][i] for i in ids).removeprefix(" ")
        >>> token_texts(Words(), [1, 2, 3])
        [' a', ' cat', 's']
    """
    before = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    known = len(tokenizer.decode(before))
    return [tokenizer.decode([*before, token])[known:] for token in tokens]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `stop`."""
    return next(
        (size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0
    )
