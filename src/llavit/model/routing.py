"""Separate QKV for visual tokens (paper: change 1), without computing anything twice.

    for token i:  q_i = W_visual x_i  if token i is visual  else  W_text x_i        (k and v alike)

A `RoutedLinear` stands where the LLM had a projection. `VisualRoute` says which tokens are visual. It is made
once per forward pass and travels to the attention modules as the keyword argument `visual_route`, where a
pre-forward hook takes it off and lays it down for the projections, for this thread alone. Because it is an argument up
to there, a layer that is run again (gradient checkpointing) or compiled sees the right tokens.

Shapes: b batch, l sequence, t text tokens, v visual tokens (b*l = t + v), d input width, o output width.
"""

import threading
from typing import Any, NamedTuple

import torch
from torch import nn

from llavit.model.families import Family


class VisualRoute(NamedTuple):
    """Which tokens of a flattened batch (b*l) take which projection.

    Attributes:
        order: (t+v,) positions of the text tokens, then those of the visual tokens. None says that tokens lie in
            that order already (`documents.py`): the projections then take slices.
        restore: (t+v,) the inverse: puts rows in that order back in their places.
        texts: t, the number of text tokens.
    """

    order: torch.Tensor | None
    restore: torch.Tensor | None
    texts: int

    @classmethod
    def from_mask(cls, visual_mask_bl: torch.Tensor) -> "VisualRoute":
        """Make a route from a boolean mask that is true at visual tokens.

        Example:
            >>> VisualRoute.from_mask(torch.tensor([[False, True, False]])).order.tolist()
            [0, 2, 1]
        """
        mask = visual_mask_bl.reshape(-1)
        text, visual = (~mask).nonzero().squeeze(1), mask.nonzero().squeeze(1)
        order = torch.cat([text, visual])
        restore = torch.empty_like(order)
        restore[order] = torch.arange(order.numel(), device=order.device)
        return cls(order, restore, text.numel())


class _CurrentRoute(threading.local):
    """What the attention module that runs in this thread was given.

    Attributes:
        route: None sends every token through the text projections.
    """

    route: VisualRoute | None = None


_current = _CurrentRoute()  # not part of a model, which threads share, and which is copied and saved


class _Permute(torch.autograd.Function):
    """Reorder rows. Knowing the inverse, the backward pass is a reordering too and not a scattered sum."""

    @staticmethod
    def forward(ctx: Any, x_nd: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return x_nd.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0].index_select(0, inverse), None, None


class RoutedLinear(nn.Module):
    """Two linear layers, of which each token takes exactly one.

    Deliberately not a subclass of `nn.Linear`: tools that swap linear layers (quantisation, tensor
    parallelism, LoRA) then find the two ordinary ones inside.

    Attributes:
        text: the LLM's own projection.
        visual: the projection of visual tokens, same shape; starts as a copy (`copy_text_to_visual`).
    """

    def __init__(self, text: nn.Linear):
        super().__init__()
        self.text = text
        self.visual = nn.Linear(
            text.in_features,
            text.out_features,
            bias=text.bias is not None,
            device=text.weight.device,
            dtype=text.weight.dtype,
        )

    @torch.no_grad()
    def copy_text_to_visual(self) -> None:
        """Start the visual projection as a copy of the text projection."""
        for mine, theirs in zip(self.visual.parameters(), self.text.parameters(), strict=True):
            mine.copy_(theirs)

    @torch.no_grad()
    def randomise_visual(self) -> None:
        """Start the visual projection at random, with the mean and the spread of the text projection's numbers."""
        for mine, theirs in zip(self.visual.parameters(), self.text.parameters(), strict=True):
            numbers = theirs.float()
            mine.normal_(numbers.mean().item(), numbers.std().item())

    def forward(self, x_bld: torch.Tensor) -> torch.Tensor:
        """Project (b, l, d) to (b, l, o)."""
        route = _current.route
        if route is None:
            return self.text(x_bld)
        x_nd = x_bld.reshape(-1, x_bld.shape[-1])
        order, restore, texts = route
        if order is not None:
            x_nd = _Permute.apply(x_nd, order, restore)
        text_td, visual_vd = x_nd.split([texts, len(x_nd) - texts])  # whose gradient is one concatenation
        y_no = torch.cat([self.text(text_td), self.visual(visual_vd)])
        if order is not None:
            y_no = _Permute.apply(y_no, restore, order)
        return y_no.view(*x_bld.shape[:-1], -1)


def _take_route(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    route = kwargs.pop("visual_route", None)
    # In vLLM, others stand in their place, and nothing is left for a graph to write down.
    if any(isinstance(module, RoutedLinear) for module in attention.children()):
        _current.route = route
    return args, kwargs


def install_routing(language_model: Any, family: Family) -> None:
    """Replace the QKV projections of every layer of an LLM by routed ones, in place.

    Args:
        language_model: a decoder without head, e.g. `LlamaModel`, with `.layers`.
        family: where its projections are.

    Raises:
        ValueError: if a projection is not where `family` says.
    """
    for number, layer in enumerate(language_model.layers):
        attention = getattr(layer, family.attention)
        for name in family.projections:
            projection = getattr(attention, name, None)
            if not isinstance(projection, nn.Linear):
                raise ValueError(
                    f"layer {number}: expected nn.Linear at {family.attention}.{name}, got "
                    f"{type(projection).__name__}; correct the family in src/llavit/model/families.py"
                )
            setattr(attention, name, RoutedLinear(projection))
        attention.register_forward_pre_hook(_take_route, with_kwargs=True)


def routed_linears(model: nn.Module) -> dict[str, RoutedLinear]:
    """Return the routed projections of a model by name (empty for a LLaVA)."""
    return {name: module for name, module in model.named_modules() if isinstance(module, RoutedLinear)}
