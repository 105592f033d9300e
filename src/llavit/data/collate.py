"""Encoded samples to one batch.

Legend: b rows, l longest row, n images of all rows, (c, h, w) pixels of one image, v visual tokens of an image,
f width of its features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from llavit.data.dataset import Skipped
from llavit.data.packing import pack

IGNORE_INDEX = -100
TEXT = -1
"""The image id of a text token."""


class Collator:
    """Pads rows to one length and joins their images; packs several samples into a row if asked to.

    The batch holds `input_ids`, `image_ids` (b, l) and, where the samples have them, `labels` (b, l) and the
    images' `pixel_values` (n, c, h, w) or `image_features` (n, v, f): all images of the first row, then of the
    second, ... A batch may have no image: then both are absent. Beside the tensors go `sample_ids`, a list of
    the samples' names, and `skipped`, the records that were left out of this batch.

    Unpacked, a row is a sample and `attention_mask` (b, l) says what is padding. Packed, the batch has
    `position_ids` (b, l) instead, which restart at 0 with each sample: transformers' mark of a packed row, by
    which attention stays within a sample. What fills a row up is one more sample, without labels. Image ids are
    unique in a row, so that no two images become one block.

    A batch of which nothing is left is one padding token without a label: it teaches nothing, but every
    process still has a batch to run.

    Args:
        pad_token_id: what fills up `input_ids`.
        padding_side: "right" to train, "left" to generate.
        pack_length: tokens of a packed row; a longer sample has a row of its own. None does not pack.

    Example:
        >>> sample = {"input_ids": torch.tensor([5, 6]), "image_ids": torch.tensor([-1, -1])}
        >>> Collator(pad_token_id=0, pack_length=5)([sample] * 2)["position_ids"].tolist()
        [[0, 1, 0, 1]]
    """

    def __init__(
        self,
        pad_token_id: int,
        padding_side: Literal["left", "right"] = "right",
        pack_length: int | None = None,
    ):
        self.fill = {"input_ids": pad_token_id, "image_ids": TEXT, "labels": IGNORE_INDEX}
        self.padding_side = padding_side
        self.pack_length = pack_length

    def __call__(self, samples: Sequence[dict[str, Any] | Skipped]) -> dict[str, Any]:
        """Build one batch."""
        rows = [sample for sample in samples if not isinstance(sample, Skipped)]
        ids = [row.get("sample_id", str(index)) for index, row in enumerate(rows)]
        skipped = [sample for sample in samples if isinstance(sample, Skipped)]
        if not rows:
            rows = [{key: torch.tensor([value]) for key, value in self.fill.items()}]

        if self.pack_length is None:
            batch = self._join(rows)
            batch["attention_mask"] = self._pad([torch.ones_like(row["input_ids"]) for row in rows], 0)
        else:
            groups = pack([len(row["input_ids"]) for row in rows], self.pack_length)
            batch = self._join([_one_row([rows[index] for index in group]) for group in groups])
        return {**batch, "sample_ids": ids, "skipped": skipped}

    def _join(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad the rows' columns to one length and join their images."""
        keys = [key for key in self.fill if key in rows[0]]
        batch: dict[str, Any] = {key: self._pad([row[key] for row in rows], self.fill[key]) for key in keys}
        if "position_ids" in rows[0]:
            length = batch["input_ids"].shape[1]
            batch["position_ids"] = torch.stack(
                [torch.cat([p, torch.arange(length - len(p))]) for p in (row["position_ids"] for row in rows)]
            )
        for key in ("pixel_values", "image_features"):
            images = [row[key] for row in rows if row.get(key) is not None]
            if images:
                batch[key] = torch.cat(images)
        return batch

    def _pad(self, rows_l: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            rows_l, batch_first=True, padding_value=value, padding_side=self.padding_side
        )


def _one_row(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Lay samples one behind the other; positions restart, image ids go on."""
    image_ids, images = [], 0
    for sample in samples:
        ids = sample["image_ids"]
        image_ids.append(torch.where(ids == TEXT, TEXT, ids + images))
        images = max(images, int(image_ids[-1].max()) + 1)
    row: dict[str, Any] = {
        "input_ids": torch.cat([sample["input_ids"] for sample in samples]),
        "image_ids": torch.cat(image_ids),
        "position_ids": torch.cat([torch.arange(len(sample["input_ids"])) for sample in samples]),
    }
    if "labels" in samples[0]:
        # The last token of one sample must not learn to foresee the first of the next.
        firsts = [torch.cat([torch.tensor([IGNORE_INDEX]), sample["labels"][1:]]) for sample in samples]
        row["labels"] = torch.cat(firsts)
    for key in ("pixel_values", "image_features"):
        found = [sample[key] for sample in samples if sample.get(key) is not None]
        if found:
            row[key] = torch.cat(found)
    return row
