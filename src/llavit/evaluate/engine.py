"""Ask a model many questions at once: answers by greedy decoding, and likelihoods of given answers.

What prompts share is computed once: each stretch of them (`stretches.py`) runs once for all prompts that begin alike,
and for likelihoods each option runs behind the keys and values of its prompt. Stretches are padded on the left and
masked, so each row is computed as if it were alone: batching changes speed, not answers (to rounding).

Legend: n rows of a batch, l tokens of a stretch, v visual tokens of an image, f width of its features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from llavit.evaluate.stretches import Prompt, Stretch, cut, families_together, levels_of
from llavit.model.compat import cache_argument, output_cache
from llavit.model.endings import end_tokens, never_generated

LEAST_SHARED = 256

_NO_NUMBERS = (
    "the model's logits are not numbers (NaN): its weights hold NaN, or its activations are too large for its dtype; "
    "try bfloat16 or float32"
)

Progress = Callable[[int], None]
"""Called with the number of prompts just done."""


class _State:
    """Keys and values of n rows, what of them is no padding (n, past), and the last logits (n, vocabulary)."""

    def __init__(self) -> None:
        self.cache: Any = None
        self.mask: torch.Tensor | None = None
        self.logits: torch.Tensor | None = None

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be kept several times."""
        if self.cache is None or self.mask is None or self.logits is None:
            return
        if list(rows) == list(range(len(self.mask))):
            return
        index = torch.tensor(list(rows), device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask, self.logits = self.mask[index], self.logits[index]


class Engine:
    """Runs prompts through a model.

    Args:
        model: a LLaViT or LLaVA model, in evaluation mode.
        pad_token_id: what fills stretches up.
        batch_size: prompts that run together.
        least_shared: a beginning that a whole batch shares runs apart if that saves so many tokens; below, the extra
            pass costs more than it saves.

    Example:
        engine = Engine(model, processor.tokenizer.pad_token_id)
        answers = engine.generate(prompts, max_new_tokens=8, stop=lambda ids: False)
    """

    def __init__(
        self, model: Any, pad_token_id: int | None, batch_size: int = 32, least_shared: int = LEAST_SHARED
    ):
        self.model, self.pad, self.batch_size = model, pad_token_id or 0, batch_size
        self.least_shared = least_shared
        self.ends = frozenset(end_tokens(model.generation_config))
        # A sliding window counts the padding between stretches as tokens: such LLMs run each prompt in one stretch.
        text = model.config.get_text_config()
        kinds = getattr(text, "layer_types", None) or [
            "sliding" if getattr(text, "sliding_window", None) else "full"
        ]
        self.shares = not any("sliding" in kind for kind in kinds)
        self.suppressed = torch.tensor(never_generated(model), device=model.device)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        stop: Callable[[list[int]], bool] = lambda ids: False,
        progress: Progress | None = None,
    ) -> list[list[int]]:
        """Return the greedy continuation of each prompt, without the end-of-turn token.

        Args:
            prompts: in any order and of any length.
            max_new_tokens: greatest length of an answer.
            stop: says of the tokens so far that the answer is complete.
            progress: see `Progress`.

        Raises:
            FloatingPointError: logits are NaN.
        """
        answers: dict[int, list[int]] = {}
        for batch, state in self._prefilled(prompts):
            for index, answer in zip(batch, self._decode(state, max_new_tokens, stop), strict=True):
                answers[index] = answer
            if progress:
                progress(len(batch))
        return [answers[index] for index in range(len(prompts))]

    @torch.inference_mode()
    def likelihoods(
        self,
        prompts: Sequence[Prompt],
        options: Sequence[Sequence[list[int]]],
        *,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Return the mean log-probability per token of each option behind its prompt.

        Args:
            prompts: in any order and of any length.
            options: of each prompt, the tokens of each option, at least one.
            progress: see `Progress`.

        Raises:
            FloatingPointError: logits are NaN.
        """
        scores: dict[int, list[float]] = {}
        for batch, state in self._prefilled(prompts):
            for index, row in zip(
                batch, self._score(state, [options[index] for index in batch]), strict=True
            ):
                scores[index] = row
            if progress:
                progress(len(batch))
        return [scores[index] for index in range(len(prompts))]

    def _prefilled(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], _State]]:
        """Give batches of prompts (their positions) with the state behind their last tokens."""
        keys = [prompt.keys() for prompt in prompts]
        # Neighbours share most, and are of like length.
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number].ids))
        order = families_together(order, keys)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            state = _State()
            those, theirs = [prompts[number] for number in batch], [keys[number] for number in batch]
            for level in (
                levels_of(those, theirs, self.least_shared)
                if self.shares
                else [[cut(p, 0, len(p.ids), 0) for p in those]]
            ):
                self._extend(state, level)
            yield batch, state

    def _extend(self, state: _State, stretches: Sequence[Stretch]) -> None:
        """Run one stretch of each row behind the rows that they go on from."""
        state.select([stretch.parent for stretch in stretches])
        device = self.model.device
        longest = max(len(stretch.ids) for stretch in stretches)
        pads = [longest - len(stretch.ids) for stretch in stretches]
        ids = torch.tensor(
            [[self.pad] * pad + stretch.ids for pad, stretch in zip(pads, stretches, strict=True)],
            device=device,
        )
        real = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads], device=device)
        features = [feature for stretch in stretches for feature in stretch.features]
        logits = self._forward(state, ids, real, torch.stack(features) if features else None, keep=1)
        state.logits = logits[:, -1]

    def _forward(
        self, state: _State, ids: torch.Tensor, real: torch.Tensor, features: torch.Tensor | None, keep: int
    ) -> torch.Tensor:
        """Return logits (n, l or keep, vocabulary) of tokens (n, l) behind the state, which takes them up."""
        before = real[:, :0] if state.mask is None else state.mask
        state.mask = torch.cat([before, real], dim=1)
        positions = (state.mask.cumsum(1) - 1).clamp(min=0)[:, before.shape[1] :]
        outputs = self.model(
            input_ids=ids,
            attention_mask=state.mask,
            position_ids=positions,
            image_features=features,
            use_cache=True,
            logits_to_keep=keep,
            **cache_argument(state.cache),
        )
        state.cache = output_cache(outputs)
        return outputs.logits

    def _decode(
        self, state: _State, max_new_tokens: int, stop: Callable[[list[int]], bool]
    ) -> list[list[int]]:
        assert state.logits is not None
        answers: list[list[int]] = [[] for _ in range(len(state.logits))]
        active = list(range(len(answers)))
        for step in range(max_new_tokens):
            logits = state.logits
            logits.index_fill_(1, self.suppressed, -math.inf)
            likeliest = logits.argmax(-1, keepdim=True)
            if logits.gather(-1, likeliest).isnan().any():  # NaN is the greatest of all to argmax
                raise FloatingPointError(_NO_NUMBERS)
            chosen = likeliest[:, 0].tolist()
            going = []
            for row, (index, token) in enumerate(zip(active, chosen, strict=True)):
                if token in self.ends:
                    continue
                answers[index].append(token)
                if not stop(answers[index]):
                    going.append(row)
            if not going or step == max_new_tokens - 1:
                break
            state.select(going)
            active = [active[row] for row in going]
            ids = torch.tensor([[chosen[row]] for row in going], device=logits.device)
            state.logits = self._forward(state, ids, torch.ones_like(ids), None, keep=1)[:, -1]
        return answers

    def _score(self, state: _State, options: Sequence[Sequence[list[int]]]) -> list[list[float]]:
        assert state.logits is not None
        first = state.logits.float().log_softmax(-1)
        pairs = [(row, option[0]) for row, of_row in enumerate(options) for option in of_row]
        begun = iter(_values(first, pairs))
        sums = [[next(begun) for _ in of_row] for of_row in options]
        # Options of several tokens: all but the last run behind the prompt, all but the first are foreseen there.
        longer = [
            (row, k)
            for row, of_row in enumerate(options)
            for k, option in enumerate(of_row)
            if len(option) > 1
        ]
        for start in range(0, len(longer), self.batch_size):
            part = longer[start : start + self.batch_size]
            branch = _State()
            branch.cache, branch.mask, branch.logits = _copy(state.cache), state.mask, state.logits
            branch.select([row for row, _ in part])
            tokens = [options[row][k] for row, k in part]
            longest = max(len(option) for option in tokens) - 1
            ids = torch.tensor(
                [[*option[:-1], *[self.pad] * (longest + 1 - len(option))] for option in tokens]
            )
            real = torch.tensor([[1] * (len(o) - 1) + [0] * (longest + 1 - len(o)) for o in tokens])
            device = first.device
            foreseen = (
                self._forward(branch, ids.to(device), real.to(device), None, keep=0).float().log_softmax(-1)
            )
            places = [
                (place, at, token)
                for place, option in enumerate(tokens)
                for at, token in enumerate(option[1:])
            ]
            values = iter(_values(foreseen, places))
            for (row, k), option in zip(part, tokens, strict=True):
                sums[row][k] += sum(next(values) for _ in option[1:])
        if any(math.isnan(total) for of_row in sums for total in of_row):
            raise FloatingPointError(_NO_NUMBERS)
        return [
            [total / len(option) for total, option in zip(of_row, choices, strict=True)]
            for of_row, choices in zip(sums, options, strict=True)
        ]


def _values(x: torch.Tensor, places: Sequence[tuple[int, ...]]) -> list[float]:
    """Read numbers at some places of a tensor, all at once: on a GPU each reading waits for what is queued."""
    return x[tuple(torch.tensor(places, device=x.device).T)].tolist()


def _copy(cache: Any) -> Any:
    """A cache that can be cut and grown while the first stays as it is; the tensors are shared."""
    import copy

    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin
