"""Products of one row as reductions: the same numbers, and no product is left."""

import pytest
import torch

from llavit.serve.one_row import ProductsAsReductions

WORKS = pytest.mark.usefixtures("compiler")


class Watched(ProductsAsReductions):
    """Keeps the names of the operators before and after."""

    def __call__(self, graph):
        self.before = [str(node.target) for node in graph.nodes if node.op == "call_function"]
        super().__call__(graph)
        self.after = [str(node.target) for node in graph.nodes if node.op == "call_function"]

    def uuid(self):
        return None  # a cached graph would not be made


def run(module, x):
    """Compile a module with the pass and run it; give what came out, and the pass."""
    torch._dynamo.reset()
    watched = Watched()
    with torch.inference_mode(), torch._inductor.config.patch(joint_custom_post_pass=watched):
        return torch.compile(module, dynamic=False)(x), watched


@WORKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_one_row_become_sums_with_the_same_result(dtype):
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(24, 40), torch.nn.SiLU(), torch.nn.Linear(40, 8, bias=False)
    ).to(dtype)
    x = torch.randn(1, 1, 24, dtype=dtype)
    found, watched = run(module, x)
    products = ("aten.mm.default", "aten.addmm.default")
    assert sum(name in products for name in watched.before) == 2
    assert not any(name in products for name in watched.after)
    assert sum(name == "aten.sum.dim_IntList" for name in watched.after) == 2
    assert found.dtype == dtype
    with torch.inference_mode():
        torch.testing.assert_close(found, module(x))


@WORKS
def test_products_of_several_rows_stay():
    module = torch.nn.Linear(24, 40)
    x = torch.randn(3, 24)
    found, watched = run(module, x)
    assert "aten.addmm.default" in watched.after
    torch.testing.assert_close(found, module(x).detach())
