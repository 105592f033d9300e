"""How an answer is generated: lmms-eval's `generation_kwargs` as settings of `generate`, and where an answer ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria

MAX_NEW_TOKENS = 1024
"""Where a task names no limit, as in lmms-eval's own LLaVA."""

_SAMPLING = ("temperature", "top_p", "top_k")
# What some tasks state for other models' ways to cut images up; ours is the checkpoint's image processor.
_NOT_OURS = frozenset({"image_aspect_ratio"})
_OPTIONS = ("repetition_penalty", "no_repeat_ngram_size", "length_penalty", "min_new_tokens")


@dataclass(frozen=True)
class Decoding:
    """Settings of generation; equal ones can share a batch.

    Attributes:
        max_new_tokens: greatest length of an answer, in tokens.
        until: strings at which an answer ends; they are not part of it.
        num_beams: 1 takes the likeliest token (or a drawn one), more search.
        sampling: temperature, top_p and top_k by which tokens are drawn; empty for greedy decoding.
        options: further options of transformers' `generate`.

    Example:
        >>> Decoding.of({"until": ["\\n\\n"], "max_new_tokens": 16, "temperature": 0, "top_p": 1.0})
        Decoding(max_new_tokens=16, until=('\\n\\n',), num_beams=1, sampling=(), options=())
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    until: tuple[str, ...] = ()
    num_beams: int = 1
    sampling: tuple[tuple[str, float], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any], name: str = "task") -> Decoding:
        """Read the `generation_kwargs` of an lmms-eval task.

        A temperature above 0 draws, unless `do_sample: false` stands beside it; without a temperature,
        `do_sample: true` draws at 1.

        Args:
            given: as the task states them.
            name: what to call it in errors.

        Raises:
            ValueError: an option that means nothing here, or `until` that is no string.

        Example:
            >>> Decoding.of({"do_sample": True}).sampling
            (('temperature', 1.0),)
        """
        left = {key: value for key, value in given.items() if key not in _NOT_OURS}
        sampling = {key: left.pop(key) for key in _SAMPLING if key in left}
        temperature = sampling.get("temperature")
        draws = bool(left.pop("do_sample", temperature is not None and float(temperature) > 0))
        if draws:
            draws = float(1 if temperature is None else temperature) > 0
            sampling["temperature"] = 1.0 if temperature is None else float(temperature)
        until = left.pop("until", None) or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        if not all(isinstance(stop, str) and stop for stop in until):
            raise ValueError(f"{name}: expected `until` to be strings, got {list(until)}")
        made = cls(
            max_new_tokens=int(left.pop("max_new_tokens", None) or MAX_NEW_TOKENS),
            until=until,
            num_beams=int(left.pop("num_beams", None) or 1),
            sampling=tuple(sorted((k, v) for k, v in sampling.items() if v is not None)) if draws else (),
            options=tuple(sorted((key, left.pop(key)) for key in _OPTIONS if key in left)),
        )
        if left:
            raise ValueError(
                f"{name}: generation_kwargs {sorted(left)} are not known to llavit; known are max_new_tokens, until, "
                f"do_sample, num_beams, {', '.join((*_SAMPLING, *_OPTIONS))}"
            )
        return made

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of transformers' `generate`, stop strings apart.

        Example:
            >>> Decoding(max_new_tokens=8).arguments()
            {'max_new_tokens': 8, 'num_beams': 1, 'do_sample': False, 'temperature': None, 'top_p': None, 'top_k': None}
        """
        drawn = dict(self.sampling)
        return {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": bool(drawn),
            **{key: drawn.get(key) for key in _SAMPLING},
            **dict(self.options),
        }


def cut(text: str, until: Sequence[str]) -> str:
    """Return an answer up to the first of its stop strings, without white space around it.

    A stop string of white space alone (lmms-eval's default is an empty line) counts once the answer has begun.

    Example:
        >>> cut("\\n\\nB. cat\\n\\nBecause", ["\\n\\n"]), cut("cat ASSISTANT: dog", ["ASSISTANT:"])
        ('B. cat', 'cat')
    """
    begins = len(text) - len(text.lstrip())
    found = [text.find(stop, 0 if stop.strip() else begins) for stop in until]
    return text[: min((place for place in found if place >= 0), default=len(text))].strip()


def ended(text: str, until: Sequence[str]) -> bool:
    """Whether an answer holds one of its stop strings already.

    Example:
        >>> ended("\\n\\n", ["\\n\\n"]), ended("\\n\\nB\\n\\n", ["\\n\\n"])
        (False, True)
    """
    begins = len(text) - len(text.lstrip())
    return any(text.find(stop, 0 if stop.strip() else begins) >= 0 for stop in until)


class EndsAt(StoppingCriteria):
    """Ends each row of a batch by itself, where what it has written holds a stop string.

    Args:
        tokenizer: decodes.
        prompt: tokens of the (padded) prompt.
        until: the stop strings.
    """

    def __init__(self, tokenizer: Any, prompt: int, until: Sequence[str]):
        self.tokenizer, self.prompt, self.until = tokenizer, prompt, until

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return which of the b rows have ended, (b,)."""
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt :], skip_special_tokens=True)
        return torch.tensor([ended(text, self.until) for text in texts], device=input_ids.device)
