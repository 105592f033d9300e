"""Prompts through one compiled graph.

The tokens of a prompt go in as one row, text first, then visual ones: routing them to their projections is then a
slice, and visual features need no scattering among the words. Positions and masks say where each token stands, so the
order changes nothing. One graph serves prompts of any length, with any number of images or none: a prompt with too few
tokens of a kind to be told from a constant gets two idle ones behind its end, where nothing of it looks.

Legend: t text tokens, v visual tokens, n = t + v, w positions that are looked at, d width, e head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llavit.model.compat import cache_argument
from llavit.model.masks import TEXT
from llavit.model.routing import VisualRoute
from llavit.serve.graph import Graph, Rows
from llavit.serve.masks import prefill_masks
from llavit.serve.slots import SlotCache

_LEAST = 2
"""Tokens of each kind: a graph made for none or one holds for nothing else."""


class CompiledPrefill:
    """Prefill of the engine (`Runner.prefill`), compiled.

    Args:
        model: a LLaViT or LLaVA, in evaluation mode.
        kinds: of its layers, see `masks.layer_kinds`.
        slots: keys and values.

    Attributes:
        idle: most positions behind a prompt that are written to.

    Example:
        prefill = CompiledPrefill(model, kinds, slots)
        logits = prefill(0, ids, image_ids, features)
    """

    def __init__(self, model: Any, kinds: tuple[str, ...] | None, slots: SlotCache):
        self.kinds, self.slots, self.config = kinds, slots, model.config
        self.projector = model.model.multi_modal_projector
        self.width, self.device = model.config.llm.hidden_size, model.device
        self.idle = 2 * _LEAST
        self._graph = Graph(model, self._forward)

    def takes(self, length: int, past: int) -> bool:
        """Whether a prompt has room for idle tokens behind it."""
        return past + length + self.idle <= self.slots.length

    def warm_up(self) -> None:
        """Make the graph now; the slots must be free."""
        # No two lengths alike: a graph takes lengths that were equal when it was made for the same.
        past, image_ids = 5, torch.tensor([TEXT] * 13 + [0] * 16 + [TEXT] * 7)
        features = torch.zeros(1, 16, self.projector.linear_1.in_features, dtype=self._graph.dtype)
        if self.takes(len(image_ids), past):
            self(0, [0] * len(image_ids), image_ids, features.to(self.device), past)

    def __call__(
        self,
        slot: int,
        ids: Sequence[int],
        image_ids: torch.Tensor,
        features: torch.Tensor | None = None,
        past: int = 0,
    ) -> torch.Tensor:
        """Give logits (v,) behind the last of some tokens; arguments as of `Runner.prefill`."""
        visual = image_ids != TEXT
        text_t, visual_v = (~visual).nonzero().squeeze(1), visual.nonzero().squeeze(1)
        weight = self.projector.linear_1.weight
        projected_vd = (
            torch.zeros(0, self.width, dtype=self._graph.dtype, device=self.device)
            if features is None
            else self.projector(features.to(weight.device, weight.dtype)).flatten(0, 1)
        )
        if len(projected_vd) != len(visual_v):
            raise ValueError(f"{len(visual_v)} visual tokens, but features of {len(projected_vd)}")
        ids_t = torch.as_tensor(ids)[text_t]
        end = past + len(ids)
        positions, images = [past + text_t, past + visual_v], [image_ids[text_t], image_ids[visual_v]]
        if (idle := max(0, _LEAST - len(ids_t))) > 0:
            ids_t = torch.nn.functional.pad(ids_t, (0, idle))
            positions[0], images[0] = _idle(positions[0], images[0], end, idle)
            end += idle
        if (idle := max(0, _LEAST - len(projected_vd))) > 0:
            projected_vd = torch.nn.functional.pad(projected_vd, (0, 0, 0, idle))
            positions[1], images[1] = _idle(positions[1], images[1], end, idle)
            end += idle
        positions_n, images_n = torch.cat(positions), torch.cat(images)
        images_w = torch.full((end,), TEXT)
        images_w[positions_n] = images_n
        last = int((positions_n == past + len(ids) - 1).nonzero())
        inputs = [
            each.to(self.device)
            for each in (ids_t, projected_vd, positions_n, images_n, images_w, torch.arange(end))
        ]
        row = slice(slot, slot + 1)
        keys, values = ([each[row] for each in side] for side in (self.slots.keys, self.slots.values))
        return self._graph.run(inputs, *inputs, torch.tensor([last], device=self.device), keys, values)[0]

    def _forward(
        self,
        ids_t: torch.Tensor,
        projected_vd: torch.Tensor,
        positions_n: torch.Tensor,
        images_n: torch.Tensor,
        images_w: torch.Tensor,
        columns_w: torch.Tensor,
        last: torch.Tensor,
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
    ) -> torch.Tensor:
        graph = self._graph
        words_td = graph.llm.get_input_embeddings()(ids_t)
        together_nw = None
        if self.config.bidirectional_visual_attention:
            together_nw = (images_n[:, None] == images_w) & (images_n != TEXT)[:, None]
        options: dict[str, Any] = {}
        if self.config.visual_qkv:
            options["visual_route"] = VisualRoute(None, None, len(ids_t))

        row_n = torch.zeros_like(positions_n)

        def write(slots: torch.Tensor, new: torch.Tensor) -> None:
            slots[row_n, :, positions_n] = new[0].transpose(
                0, 1
            )  # into a slice, the compiler copies the slot

        hidden = graph.llm(
            inputs_embeds=torch.cat([words_td, projected_vd.to(words_td.dtype)])[None],
            attention_mask=prefill_masks(
                graph.llm.config, self.kinds, columns_w, positions_n, together_nw, graph.dtype
            ),
            position_ids=positions_n[None],
            use_cache=True,
            **cache_argument(Rows(keys, values, write, len(columns_w))),
            **options,
        ).last_hidden_state
        return graph.head(hidden[0, last])


def _idle(
    positions: torch.Tensor, images: torch.Tensor, end: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add tokens behind a prompt's end, of no image."""
    return torch.cat([positions, torch.arange(end, end + count)]), torch.nn.functional.pad(
        images, (0, count), value=TEXT
    )
