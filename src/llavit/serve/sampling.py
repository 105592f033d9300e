"""How the next token is chosen: the options of a request, and what applies them to logits.

The order is that of transformers' `generate`: logit bias, repetition penalty, presence and frequency penalties, no
end before `min_new_tokens`, temperature, top-k, top-p, min-p; the processors are transformers' own.

Legend: n rows of a batch, v vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

MOST_TOP_LOGPROBS = 20
MOST_STOP_STRINGS = 16


@dataclass(frozen=True)
class Sampling:
    """Options of a request; names and meaning are those of transformers' `GenerationConfig` where it has them.

    Attributes:
        max_new_tokens: greatest length of the answer.
        min_new_tokens: no end-of-turn token before so many tokens.
        do_sample: draw tokens at random; otherwise the likeliest is taken.
        temperature: above 1 flattens the distribution, below sharpens it; used when sampling.
        top_k: draw among the so many likeliest tokens.
        top_p: draw among the likeliest tokens that together have this probability.
        min_p: draw among tokens at least this likely, relative to the likeliest.
        repetition_penalty: above 1 makes tokens of prompt and answer less likely.
        presence_penalty: subtracted from the logit of each token that the answer has (as OpenAI's).
        frequency_penalty: subtracted as often as the answer has the token (as OpenAI's).
        logit_bias: added to the logits of these tokens, by token id.
        stop: strings at which the answer ends; they are left out.
        seed: the same seed gives the same answer, whatever else runs in the batch.
        logprobs: give the log-probability of each token.
        top_logprobs: with that, so many of the likeliest tokens at each place.

    Raises:
        ValueError: a value that makes no sense; says which are allowed.

    Example:
        >>> Sampling(do_sample=True, temperature=0.7, seed=1).temperature
        0.7
        >>> Sampling(temperature=0)
        Traceback (most recent call last):
        ...
        ValueError: temperature=0: expected a number from 0.001 to 1000; for greedy, set do_sample=False
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, list | tuple):
            raise ValueError(f"stop={stop!r}: expected a string or a list of strings")
        stop = tuple(stop)
        object.__setattr__(self, "stop", stop)
        for name in ("do_sample", "logprobs"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected True or False")
        self._whole("max_new_tokens", 1)
        self._whole("min_new_tokens", 0, self.max_new_tokens, " (max_new_tokens)")
        self._whole("top_logprobs", 0, MOST_TOP_LOGPROBS)
        if self.top_k is not None:
            self._whole("top_k", 1)
        if self.seed is not None:
            self._whole("seed", -(2**63), 2**63 - 1)
        # Beyond these, float32 overflows.
        hint = "; for greedy, set do_sample=False"
        self._number("temperature", 0.001, 1000, hint)
        self._number("repetition_penalty", 0.001, 1000)
        self._number("presence_penalty", -1000, 1000)
        self._number("frequency_penalty", -1000, 1000)
        if self.top_p is not None:
            self._number("top_p", 0.001, 1)
        if self.min_p is not None:
            self._number("min_p", 0, 1)
        if self.top_logprobs and not self.logprobs:
            raise ValueError(f"top_logprobs={self.top_logprobs}: expected 0 without logprobs=True")
        if len(stop) > MOST_STOP_STRINGS or not all(isinstance(text, str) and text for text in stop):
            raise ValueError(f"stop={stop!r}: expected up to {MOST_STOP_STRINGS} strings, none of them empty")
        if not isinstance(self.logit_bias, Mapping):
            raise ValueError(f"logit_bias={self.logit_bias!r:.80}: expected a dict of token ids and numbers")
        for token, bias in self.logit_bias.items():
            if not _whole(token) or token < 0 or not _finite(bias) or abs(bias) > 10_000:
                raise ValueError(
                    f"logit_bias={{{token!r}: {bias!r}}}: expected token ids and numbers from -10000 to 10000"
                )

    def _whole(self, name: str, least: int, most: int | None = None, why: str = "") -> None:
        value = getattr(self, name)
        if not _whole(value) or value < least or (most is not None and value > most):
            until = "up" if most is None else f"to {most}{why}"
            raise ValueError(f"{name}={value!r}: expected a whole number from {least} {until}")

    def _number(self, name: str, least: float, most: float, hint: str = "") -> None:
        value = getattr(self, name)
        if not _finite(value) or not least <= value <= most:
            raise ValueError(f"{name}={value!r}: expected a number from {least:g} to {most:g}{hint}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Choice:
    """The token that was taken, and, if asked for, its log-probability and the likeliest tokens' (id, value)."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one request.

    Args:
        sampling: its options.
        prompt: its token ids.
        ends: ids of end-of-turn tokens.
        device: where logits are.

    Attributes:
        plain: takes the likeliest token (that may come yet) and asks for nothing else, so that whole batches are done
            at once.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], ends: Iterable[int], device: Any):
        self.sampling = sampling
        self.ends = torch.tensor(sorted(ends), dtype=torch.long, device=device)
        self.answer: list[int] = []
        self._prompt: Any = torch.tensor(prompt, device=device)
        self._biased = torch.tensor(list(sampling.logit_bias), dtype=torch.long, device=device)
        self._biases = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float32, device=device)
        self._processors, self._warpers = LogitsProcessorList(), LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
        self._generator: torch.Generator | None = None
        if sampling.do_sample:
            self._generator = torch.Generator(device=device)
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)
            if sampling.temperature != 1:
                self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k is not None:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p is not None and sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(float(sampling.top_p)))
            if sampling.min_p is not None and sampling.min_p > 0:
                self._warpers.append(MinPLogitsWarper(float(sampling.min_p)))
        penalties = sampling.presence_penalty or sampling.frequency_penalty
        self._counts: Counter[int] | None = Counter() if penalties else None
        self.plain = not (
            self._processors or sampling.do_sample or penalties or sampling.logit_bias or sampling.logprobs
        )

    @property
    def may_end(self) -> bool:
        """Whether the answer is long enough to end."""
        return len(self.answer) >= self.sampling.min_new_tokens

    def took(self, token: int) -> None:
        """Note a token as part of the answer."""
        self.answer.append(token)
        if self._counts is not None:
            self._counts[token] += 1

    def choose(self, raw_v: torch.Tensor, suppressed: torch.Tensor) -> Choice:
        """Choose the next token.

        Args:
            raw_v: (v,) logits as the model gave them, float32; left as they are.
            suppressed: ids of tokens that are never generated.
        """
        token = int(self._pick(raw_v.clone(), suppressed))
        if not self.sampling.logprobs:
            return Choice(token)
        logprobs = raw_v.log_softmax(-1)
        best = logprobs.topk(min(self.sampling.top_logprobs, len(logprobs)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Choice(token, float(logprobs[token]), top)

    def _pick(self, logits_v: torch.Tensor, suppressed: torch.Tensor) -> torch.Tensor:
        sampling = self.sampling
        if len(self._biased):
            logits_v[self._biased] += self._biases
        if self._processors:
            said = torch.tensor(self.answer, dtype=self._prompt.dtype, device=self._prompt.device)
            ids: Any = torch.cat([self._prompt, said])[None]
            logits_v = self._processors(ids, logits_v[None])[0]
        if self._counts:
            tokens = torch.tensor(list(self._counts), device=logits_v.device)
            times = torch.tensor(list(self._counts.values()), device=logits_v.device, dtype=logits_v.dtype)
            logits_v[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * times
        if not self.may_end:
            logits_v.index_fill_(0, self.ends, -math.inf)
        logits_v[suppressed] = -math.inf
        if self._generator is None:
            return logits_v.argmax()
        logits_v = self._warpers(self._prompt[None], logits_v[None])[0]
        return torch.multinomial(logits_v.softmax(-1), 1, generator=self._generator)


def choose_tokens(
    logits_nv: torch.Tensor, samplers: Sequence[Sampler], suppressed: torch.Tensor
) -> list[Choice | Exception]:
    """Choose the next token of each row; what goes wrong in a row is given in its place.

    Args:
        logits_nv: (n, v); changed in place.
        samplers: of each row.
        suppressed: ids of tokens that are never generated.
    """
    chosen: list[Choice | Exception | None] = [None] * len(samplers)
    for row, sampler in enumerate(samplers):
        if not sampler.plain:
            try:
                chosen[row] = sampler.choose(_finite_row(logits_nv[row].float()), suppressed)
            except Exception as error:
                chosen[row] = error
    if any(choice is None for choice in chosen):
        logits_nv.index_fill_(1, suppressed, -math.inf)
        for row, sampler in enumerate(samplers):
            if not sampler.may_end:
                logits_nv[row].index_fill_(0, sampler.ends, -math.inf)
        best = logits_nv.max(-1)
        for row, (token, value) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True)):
            if chosen[row] is None:
                chosen[row] = Choice(token) if math.isfinite(value) else _not_finite()
    return chosen  # type: ignore[return-value]


def _finite_row(logits_v: torch.Tensor) -> torch.Tensor:
    if not bool(logits_v.max().isfinite()):
        raise _not_finite()
    return logits_v


def _not_finite() -> Exception:
    return FloatingPointError(
        "the model's logits are not finite: its weights or this image overflow its dtype; try dtype='float32'"
    )
