"""The model as the engine uses it: prefill one prompt, decode one token of every running request.

Each request has a row of `SlotCache`; the rows that decode are always the first ones. What is computed is what
transformers computes: prompts go through the whole model with its own masks, decoding through the LLM with masks made
here, in which a row sees its own filled positions only (those of its window in layers with a sliding window).

Legend: n images, b rows, l tokens, v vocabulary, w positions that are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from llavit.model.compat import cache_argument
from llavit.model.masks import TEXT
from llavit.serve.masks import decode_masks, layer_kinds
from llavit.serve.slots import SlotCache

if TYPE_CHECKING:
    from llavit.serve.prefilling import CompiledPrefill
    from llavit.serve.seeing import CompiledTower

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
        idle: most positions behind the longest of some prompts that `prefill_rows` writes to.

    Raises:
        ValueError: an attention implementation that takes no masks, a kind of layer that has no row of keys and
            values, a `max_length` beyond what the model knows, or slots for which a GPU has no room.

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
        self.slots = _slots(self.text_config, max_batch, self.max_length, model.dtype, self.device)
        self._filler = 0 if model.config.image_token_id else 1  # any token of text
        self._columns = torch.arange(self.max_length, device=self.device)
        self._decode_step: DecodeStep = self._decode_eager
        self.idle = 0
        self._prefill: CompiledPrefill | None = None
        self._tower: CompiledTower | None = None

    def compile(self, pixels: torch.Tensor) -> None:
        """Compile decoding, prefill and (on a CPU) the tower now; takes some minutes. The slots must be free.

        Args:
            pixels: (1, 3, height, width) of any image, as the processor makes them.
        """
        from llavit.serve.decoding import CompiledDecode
        from llavit.serve.prefilling import CompiledPrefill
        from llavit.serve.seeing import CompiledTower

        step = CompiledDecode(self.model, self.kinds, self.slots)
        step.warm_up()
        self._decode_step = step
        self._prefill = CompiledPrefill(self.model, self.kinds, self.slots)
        self._prefill.warm_up()
        self.idle = self._prefill.idle
        if self.device.type == "cpu":
            height, width = pixels.shape[-2:]
            self._tower = CompiledTower(self.model.model, (height, width))
            self.features(pixels)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the vision tower over images (n, 3, height, width)."""
        if self._tower is not None and self._tower.takes(pixels):
            return self._tower(pixels)
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
        if self._prefill is not None and self._prefill.takes(max(map(len, ids)), past):
            return self._prefill_one_by_one(first, ids, image_ids, features, past)
        lengths = [len(each) for each in ids]
        longest = max(lengths)
        self.slots.prefill_at(first, past)
        positions = torch.arange(past, past + longest, device=self.device)
        filled = [[*each, *[self._filler] * (longest - len(each))] for each in ids]
        numbered = [torch.nn.functional.pad(each, (0, longest - len(each)), value=TEXT) for each in image_ids]
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

    def _prefill_one_by_one(
        self,
        first: int,
        ids: Sequence[Sequence[int]],
        image_ids: Sequence[torch.Tensor],
        features: torch.Tensor | None,
        past: int,
    ) -> torch.Tensor:
        """Run prompts through the compiled graph, which is for one."""
        assert self._prefill is not None
        taken, logits = 0, []
        for number, (tokens, images) in enumerate(zip(ids, image_ids, strict=True)):
            count = len(images[images != TEXT].unique())
            own = features[taken : taken + count] if features is not None and count else None
            taken += count
            logits.append(self._prefill(first + number, tokens, images, own, past))
        return torch.stack(logits)

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


def _slots(text_config: Any, slots: int, length: int, dtype: torch.dtype, device: torch.device) -> SlotCache:
    """Make room for keys and values; a GPU gives all of it now."""
    try:
        return SlotCache(text_config, slots=slots, length=length, dtype=dtype, device=device)
    except torch.OutOfMemoryError as error:
        one = SlotCache(text_config, slots=1, length=1, dtype=dtype, device="cpu")
        size = slots * length * sum(each.nbytes for each in (*one.keys, *one.values))
        raise ValueError(
            f"keys and values of {slots} answers of {length} tokens take {size / 1e9:.3g} GB, which {device} has not "
            "left beside the model: lower max_batch or max_length"
        ) from error


def _max_length(text_config: Any, wanted: int | None) -> int:
    known = text_config.max_position_embeddings
    rope = getattr(text_config, "rope_parameters", None) or {}
    original = int(rope.get("original_max_position_embeddings") or known)
    if wanted is None:
        return min(known, original, LONGEST)
    if not 2 <= wanted <= known:
        raise ValueError(f"max_length={wanted}: expected 2 to {known}, the positions that the model knows")
    if rope.get("rope_type") == "longrope" and wanted > original:
        raise ValueError(
            f"max_length={wanted}: expected at most {original}: behind it the model's rotary factors (longrope) are "
            "others, for all answers of a batch and for what the image cache holds"
        )
    return wanted
