"""Separate QKV for visual tokens in vLLM's steps, which mix tokens of many requests.

    y = text(x)                  all tokens of the step, in the compiled graph
    y[rows] = visual(x[rows])    one opaque operator; nothing at all in a step without a visual token (decode)

`rows` is found once a step (`model.py`) and travels in vLLM's forward context. An operator, because it is not known
when the graph is made; opaque, because torch.compile cannot look into it and so cannot fix what it saw once. Where
CUDA graphs are taken, they are cut at it (`settings.py`), so that it runs anew in each step.

Shapes: n tokens of a step, v visual ones among them, d input width, o output width.
"""

from typing import Any

import torch
from torch import nn
from vllm.forward_context import get_forward_context
from vllm.utils.torch_utils import direct_register_custom_op

OPERATOR = "llavit::project_visual"
ROWS = "llavit_visual_rows"
"""Key of the forward context's `additional_kwargs`: (v,) rows of visual tokens, or absent where there are none."""

_library = torch.library.Library("llavit", "FRAGMENT")  # operators live as long as this


class RoutedProjection(nn.Module):
    """Stands where the model had a `RoutedLinear`, around the two parallel layers that vLLM made of its parts.

    Args:
        text: projection of text tokens.
        visual: projection of visual tokens.
        name: unique; the operator finds this module by it.
    """

    def __init__(self, text: nn.Module, visual: nn.Module, name: str):
        super().__init__()
        self.text = text
        self.visual = visual
        self.name = name

    def forward(self, x_1nd: torch.Tensor) -> torch.Tensor:
        """Project (1, n, d) to (1, n, o)."""
        y_1no = self.text(x_1nd)
        torch.ops.llavit.project_visual(x_1nd, y_1no, self.name)
        return y_1no


def set_visual_rows(visual_n: torch.Tensor | None, device: torch.device) -> None:
    """Say which tokens of the present step are visual.

    Args:
        visual_n: (n,) bool, or None where none is. vLLM's own is on the CPU; one on a GPU is waited for.
        device: of the model.
    """
    context = get_forward_context().additional_kwargs
    context.pop(ROWS, None)
    if visual_n is not None:
        rows_v = visual_n.nonzero().squeeze(1)
        if len(rows_v):
            context[ROWS] = rows_v.to(device, non_blocking=True)


def _project_visual(x: torch.Tensor, y: torch.Tensor, name: str) -> None:
    context = get_forward_context()
    rows_v = context.additional_kwargs.get(ROWS)
    if rows_v is None:
        return
    projection: Any = context.no_compile_layers[name]
    x_nd, y_no = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    y_no.index_copy_(0, rows_v, projection.visual(x_nd.index_select(0, rows_v)))


direct_register_custom_op(
    op_name="project_visual",
    op_func=_project_visual,
    mutates_args=["y"],
    fake_impl=lambda x, y, name: None,
    target_lib=_library,
)
