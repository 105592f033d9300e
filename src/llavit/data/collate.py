"""Encoded samples to one batch.

Legend: b rows, l longest row, n images of all rows, (c, h, w) pixels of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from llavit.data.dataset import Skipped

IGNORE_INDEX = -100
TEXT = -1
"""The image id of a text token."""


class Collator:
    """Pads rows to one length and joins their images.

    The batch holds `input_ids`, `attention_mask`, `image_ids` (b, l) and, where the samples have them,
    `labels` (b, l) and `pixel_values` (n, c, h, w): all images of the first row, then of the second, ... A
    batch may have no image: then `pixel_values` is absent. Beside the tensors go `sample_ids`, a list of b
    names, and `skipped`, the records that were left out of this batch.

    A batch of which nothing is left is one padding token without a label: it teaches nothing, but every
    process still has a batch to run.

    Args:
        pad_token_id: what fills up `input_ids`.
        padding_side: "right" to train, "left" to generate.

    Example:
        collate = Collator(processor.tokenizer.pad_token_id)
        batch = collate([dataset[0], dataset[1]])
    """

    def __init__(self, pad_token_id: int, padding_side: Literal["left", "right"] = "right"):
        self.fill = {"input_ids": pad_token_id, "image_ids": TEXT, "labels": IGNORE_INDEX}
        self.padding_side = padding_side

    def __call__(self, samples: Sequence[dict[str, Any] | Skipped]) -> dict[str, Any]:
        """Build one batch."""
        rows = [sample for sample in samples if not isinstance(sample, Skipped)]
        ids = [row.get("sample_id", str(index)) for index, row in enumerate(rows)]
        skipped = [sample for sample in samples if isinstance(sample, Skipped)]
        if not rows:
            rows = [{key: torch.tensor([value]) for key, value in self.fill.items()}]

        keys = [key for key in self.fill if key in rows[0]]
        batch: dict[str, Any] = {key: self._pad([row[key] for row in rows], self.fill[key]) for key in keys}
        batch["attention_mask"] = self._pad([torch.ones_like(row["input_ids"]) for row in rows], 0)
        images = [row["pixel_values"] for row in rows if row.get("pixel_values") is not None]
        if images:
            batch["pixel_values"] = torch.cat(images)
        return {**batch, "sample_ids": ids, "skipped": skipped}

    def _pad(self, rows_l: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            rows_l, batch_first=True, padding_value=value, padding_side=self.padding_side
        )
