"""Matrix products of one row as reductions, for CPUs without a matrix unit.

One token of one conversation reads every weight once and computes little. Reading a matrix as it lies, row by row, is
what a CPU's memory does fastest; its libraries' matrix products, made for many rows, read at two thirds of that speed
(docs/speed.md). Sums are made in float32, as the products make theirs.

Legend: k features in, n out.
"""

from __future__ import annotations

import torch
from torch._inductor import inductor_prims
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

_MM, _ADDMM = torch.ops.aten.mm.default, torch.ops.aten.addmm.default


class ProductsAsReductions(CustomGraphPass):
    """A pass over inductor's graph (`joint_custom_post_pass`) that replaces products of one row.

    Example:
        with torch._inductor.config.patch(joint_custom_post_pass=ProductsAsReductions()):
            compiled(x)
    """

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Replace each (1, k) x (k, n), with a bias (n,) or without."""
        for node in list(graph.nodes):
            if node.op != "call_function" or node.target not in (_MM, _ADDMM):
                continue
            *bias, row, matrix = node.args
            if row.meta["val"].shape[0] == 1 and not node.kwargs:
                with graph.inserting_before(node):
                    node.replace_all_uses_with(_reduction(graph, node, row, matrix, bias))
                graph.erase_node(node)

    def uuid(self) -> bytes:
        """Say which version of the pass a cached graph was made by."""
        return get_hash_for_files((__file__,))


def _reduction(
    graph: torch.fx.Graph,
    node: torch.fx.Node,
    row: torch.fx.Node,
    matrix: torch.fx.Node,
    bias: list[torch.fx.Node],
) -> torch.fx.Node:
    """Add the nodes of (1, k) x (k, n)."""
    aten, to = torch.ops.aten, torch.ops.prims.convert_element_type.default
    # Computed before it is used: else each of the n sums would compute the k activations again.
    computed = graph.call_function(inductor_prims.force_stride_order, (row, [row.meta["val"].shape[1], 1]))
    column = graph.call_function(
        aten.permute.default, (graph.call_function(to, (computed, torch.float32)), [1, 0])
    )
    products = graph.call_function(
        aten.mul.Tensor, (graph.call_function(to, (matrix, torch.float32)), column)
    )
    total = graph.call_function(aten.sum.dim_IntList, (products, [0], True))
    for each in bias:
        total = graph.call_function(aten.add.Tensor, (total, each))
    return graph.call_function(to, (total, node.meta["val"].dtype))
