"""The model as the engine uses it: prefill one prompt, decode one token of every running request.

Each request has a row of `SlotCache`; the rows that decode are always the first ones. What is computed is what
transformers computes: prompts go through the whole model with its own masks, decoding through the LLM with masks made
here, in which a row sees its own filled positions only (those of its window in layers with a sliding window).

Legend: n images, b rows, l tokens, v vocabulary, w positions that are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from llavit.model.compat import cache_argument
from llavit.model.masks import TEXT
from llavit.serve.slots import SlotCache

LONGEST = 4096
"""Default limit on `max_length`: longer contexts are to be asked for, they cost memory for every slot."""

_WINDOW = 64

DecodeStep = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(tokens (b,), positions (b,), window) -> logits (b, v); the first b slots take up the tokens' keys and values."""


class Runner:
    """Runs a model over slots.

    Args:
        model: a LLaViT or LLaVA, in evaluation mode.
        max_batch: number of slots.
        max_length: positions of each slot: prompt and answer together.

    Attributes:
        slots: the keys and values.
        max_length: as given, or the model's own limit, at most `LONGEST`.

    Raises:
        ValueError: an attention implementation that takes no masks, a kind of layer that has no row of keys and
            values, or a `max_length` beyond what the model knows.

    Example:
        runner = Runner(model, max_batch=2)
        logits = runner.prefill(0, ids, image_ids, runner.features(pixel_values))
        logits = runner.decode([int(logits.argmax())], [len(ids)])
    """

    def __init__(self, model: Any, *, max_batch: int, max_length: int | None = None):
        self.model = model
        self.text_config = model.model.language_model.config
        self.device = model.device
        self.kinds = layer_kinds(self.text_config)
        self.max_length = _max_length(self.text_config, max_length)
        self.slots = SlotCache(
            self.text_config, slots=max_batch, length=self.max_length, dtype=model.dtype, device=self.device
        )
        self._filler = 0 if model.config.image_token_id else 1  # any token of text
        self._columns = torch.arange(self.max_length, device=self.device)
        self._decode_step: DecodeStep = self._decode_eager
        self._compiling: Callable[[], AbstractContextManager[Any]] = nullcontext

    def compile(self, pixels: torch.Tensor) -> None:
        """Compile decoding and the LLM's layers now; takes a minute or two the first time. The slots must be free.

        Args:
            pixels: (1, 3, height, width) of any image, to try the graphs with.
        """
        from llavit.serve.decoding import CompiledDecode

        step = CompiledDecode(self.model, self.kinds, self.slots)
        step.warm_up()
        self._decode_step = step
        # All layers share graphs, as long as none holds the number of a layer, by which `update` finds its slots.
        self.slots.update = torch.compiler.disable(self.slots.update)  # type: ignore[method-assign]
        self._compiling = partial(torch._dynamo.config.patch, allow_unspec_int_on_nn_module=True)
        for layer in self.model.model.language_model.layers:
            layer.compile(dynamic=True)
        features = self.features(pixels)
        count = features.shape[1]
        image, word = self.model.config.image_token_id, self._filler
        # One prompt and several, with images and without, of two lengths, so that graphs take any number.
        for rows, before, after in ((1, 3, 9), (1, 5, 17), (2, 3, 9), (3, 5, 17)):
            ids = [word] * before + [image] * count + [word] * after
            image_ids = torch.tensor([0 if token == image else -1 for token in ids])
            if len(ids) + after > self.max_length or rows > len(self.slots.rows):
                return
            text = [torch.full((after,), -1)] * rows
            self.prefill_rows(0, [ids] * rows, [image_ids] * rows, features.repeat(rows, 1, 1))
            self.prefill_rows(0, [[word] * after] * rows, text, past=len(ids))
            self.prefill_rows(0, [[word] * after] * rows, text)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the vision tower over images (n, 3, height, width)."""
        return self.model.model.encode_images(pixels)

    def prefill(
        self,
        slot: int,
        ids: Sequence[int],
        image_ids: torch.Tensor,
        features: torch.Tensor | None = None,
        past: int = 0,
    ) -> torch.Tensor:
        """Run tokens of a prompt behind those that the slot holds already.

        Args:
            slot: which row.
            ids: (l,) the tokens; an image is never cut.
            image_ids: (l,) -1 for text, else a number for each image.
            features: of the images among the tokens, (n, visual tokens, width).
            past: how many positions of the slot are filled.

        Returns:
            (v,) logits behind the last token.
        """
        return self.prefill_rows(slot, [ids], [image_ids], features, past)[0]

    def prefill_rows(
        self,
        first: int,
        ids: Sequence[Sequence[int]],
        image_ids: Sequence[torch.Tensor],
        features: torch.Tensor | None = None,
        past: int = 0,
    ) -> torch.Tensor:
        """Run several prompts at once, behind the same number of tokens that their slots hold already.

        Shorter ones are filled up at their end, where nothing of theirs looks; what that leaves in their slots is
        written over by their answers.

        Args:
            first: row of the first; the others have the rows after it.
            ids: the tokens of each; an image is never cut.
            image_ids: of each, -1 for text, else a number for each image.
            features: of the images of all, in order.
            past: how many positions of the slots are filled.

        Returns:
            (b, v) logits behind the last token of each.
        """
        lengths = [len(each) for each in ids]
        longest = max(lengths)
        self.slots.prefill_at(first, past)
        positions = torch.arange(past, past + longest, device=self.device)
        filled = [[*each, *[self._filler] * (longest - len(each))] for each in ids]
        numbered = [torch.nn.functional.pad(each, (0, longest - len(each)), value=TEXT) for each in image_ids]
        with self._compiling():
            hidden = self.model.model(
                input_ids=torch.tensor(filled, device=self.device),
                image_ids=torch.stack(numbered).to(self.device),
                image_features=features,
                position_ids=positions.expand(len(ids), -1),
                use_cache=True,
                **cache_argument(self.slots),
            ).last_hidden_state
        last = torch.tensor(lengths, device=self.device) - 1
        return self.model.lm_head(hidden[torch.arange(len(ids), device=self.device), last])

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Run one token of each of the first b rows.

        Args:
            tokens: (b,) the tokens.
            positions: (b,) where they stand, which is how many positions of their rows are filled.

        Returns:
            (b, v) logits.
        """
        window = min(-(-(max(positions) + 1) // _WINDOW) * _WINDOW, self.max_length)
        return self._decode_step(
            torch.tensor(tokens, device=self.device), torch.tensor(positions, device=self.device), window
        )

    def _decode_eager(self, tokens_b: torch.Tensor, positions_b: torch.Tensor, window: int) -> torch.Tensor:
        self.slots.decode_at(positions_b, window)
        hidden = self.model.model.language_model(
            input_ids=tokens_b[:, None],
            attention_mask=decode_masks(
                self.text_config, self.kinds, self._columns[:window], positions_b, self.model.dtype
            ),
            position_ids=positions_b[:, None],
            use_cache=True,
            **cache_argument(self.slots),
        ).last_hidden_state
        return self.model.lm_head(hidden[:, -1])


def layer_kinds(text_config: Any) -> tuple[str, ...] | None:
    """Return the kinds of layers of an LLM that takes a mask for each kind; None for one that takes a single mask.

    Raises:
        ValueError: a kind that does not keep keys and values of each token.
    """
    backend = text_config._attn_implementation
    if backend not in ("sdpa", "eager"):
        raise ValueError(
            f"attention implementation {backend!r}: the engine makes masks for 'sdpa' and 'eager'; load the model with "
            "attn_implementation='sdpa'"
        )
    if not hasattr(text_config, "layer_types"):
        return None
    kinds = tuple(sorted(set(text_config.layer_types)))
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(
            f"layer_types: expected full_attention and sliding_attention, got {', '.join(sorted(unknown))}"
        )
    return kinds


def decode_masks(
    text_config: Any,
    kinds: tuple[str, ...] | None,
    columns_w: torch.Tensor,
    positions_b: torch.Tensor,
    dtype: torch.dtype,
) -> Any:
    """Make the masks of a decoding step: a row sees what stands at its own position and before.

    Args:
        text_config: the LLM's configuration.
        kinds: of `layer_kinds`.
        columns_w: the positions that are looked at, 0 to w-1.
        positions_b: where each row's token stands.
        dtype: the model's.

    Returns:
        (b, 1, 1, w), boolean for sdpa and additive for eager attention, or a dict of them by kind of layer.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(attn_implementation="sdpa")
        >>> decode_masks(config, None, torch.arange(4), torch.tensor([1, 2]), torch.float32).int().squeeze().tolist()
        [[1, 1, 0, 0], [1, 1, 1, 0]]
    """
    seen = columns_w <= positions_b[:, None]
    size: Any = getattr(text_config, "sliding_window", None)

    def made(kind: str) -> torch.Tensor:
        mask = seen if kind == "full_attention" else seen & (columns_w > positions_b[:, None] - size)
        mask = mask[:, None, None]
        if text_config._attn_implementation == "eager":
            return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)
        return mask

    if kinds is not None:
        return {kind: made(kind) for kind in kinds}
    return made("full_attention" if size is None else "sliding_attention")


def _max_length(text_config: Any, wanted: int | None) -> int:
    known = text_config.max_position_embeddings
    if wanted is None:
        # Where rotary factors change at the length of the first training, they would change for a whole batch.
        rope = getattr(text_config, "rope_parameters", None) or {}
        original = rope.get("original_max_position_embeddings") or known
        return min(known, int(original), LONGEST)
    if not 2 <= wanted <= known:
        raise ValueError(f"max_length={wanted}: expected 2 to {known}, the positions that the model knows")
    return wanted
