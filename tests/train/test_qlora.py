"""QLoRA: the LLM in four bits, and what trains over it."""

import sys
from types import SimpleNamespace

import pytest
import torch

from llavit import build_llavit
from llavit.train.lora import quantize_llm
from llavit.train.run import train
from tests.tiny import save_parts
from tests.train.lora_parts import load, logits, losses, own


def test_qlora_without_bitsandbytes_names_the_extra(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    recipe = tiny.recipe("stages.1.lora={rank: 4, alpha: 8, quantize: nf4}", "stages.0.steps=1")
    with pytest.raises(ImportError, match=r"pip install 'llavit\[qlora\]'"):
        train(recipe, output=tmp_path, progress=False)


@pytest.fixture(scope="module")
def wide(tiny, tmp_path_factory):
    """Options of a recipe for an LLM of 64 channels: bitsandbytes reads narrower ones back wrongly on a CPU."""
    pytest.importorskip("bitsandbytes", reason="of the extra `qlora`: make test-extras")
    vision, llm = save_parts(tmp_path_factory.mktemp("wide"), width=64)
    return [f"model.vision={vision}", f"model.llm={llm}"]


def build_wide(tiny, wide):
    spec = tiny.recipe(*wide).model
    return build_llavit(spec.vision, spec.llm, vision_feature_layer=[1, -2], dtype=torch.float32).model.eval()


@pytest.mark.extras
def test_qlora_holds_the_linear_layers_of_the_llm_in_four_bits_and_no_others(tiny, wide):
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    whole, small = build_wide(tiny, wide), build_wide(tiny, wide)
    small.load_state_dict(whole.state_dict())
    quantize_llm(small, torch.device("cpu"))
    decoder = whole.get_decoder()
    linear = {name for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)}
    held = {name: m for name, m in small.get_decoder().named_modules() if isinstance(m, Linear4bit)}
    assert held.keys() == {name for name in linear if not name.endswith(".visual")}
    assert not any(isinstance(module, Linear4bit) for module in small.model.multi_modal_projector.modules())
    for name, module in held.items():
        weight = decoder.get_submodule(name).weight.detach()
        assert module.weight.dtype is torch.uint8 and module.weight.numel() == weight.numel() / 2
        near = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        # Half of the widest step of NormalFloat is 0.152 of a block's largest weight; scales have 8 bits.
        blocks = weight.reshape(-1, 64).abs().amax(1, keepdim=True)
        assert ((near - weight).reshape(-1, 64).abs() <= 0.16 * blocks).all()


@pytest.mark.extras
def test_qlora_refuses_layers_that_bitsandbytes_would_compute_wrongly_on_a_cpu(tiny, wide):
    with pytest.raises(
        ValueError, match=r"a multiple of 64, layers.0.self_attn.q_proj.text has 32: .*wrongly"
    ):
        quantize_llm(tiny.build().model, torch.device("cpu"))


@pytest.mark.extras
def test_qlora_trains_over_four_bit_layers_and_loads_over_the_whole_base(tiny, wide, tmp_path, sample):
    recipe = tiny.recipe(
        *wide,
        "dtype=bfloat16",
        "stages.1.lora={rank: 4, alpha: 8, quantize: nf4}",
        "stages.0.steps=1",
        "stages.1.steps=3",
    )
    train(recipe, output=tmp_path, progress=False)
    assert len(losses(tmp_path / "instruct")) == 3
    before, after = load(tmp_path / "pretrain"), load(tmp_path / "instruct")
    a, b = own(before), own(after)
    text = "model.language_model.layers.0.self_attn.q_proj.text.weight"
    assert torch.equal(a[text], b[text])
    assert not torch.equal(a[text.replace("text", "visual")], b[text.replace("text", "visual")])
    assert torch.isfinite(logits(after, sample)).all()
    assert not torch.equal(logits(before, sample), logits(after, sample))


class Linear4bit(torch.nn.Linear):
    """Stands for bitsandbytes', which quantises where it is moved to."""

    def __init__(self, *args, compute_dtype, compress_statistics, quant_type, **kwargs):
        super().__init__(*args, **kwargs)

    def to(self, device):
        self.quantised_on = device
        return self


def test_weights_are_made_four_bits_on_the_device_that_trains_and_not_on_the_cpu_before(tiny, monkeypatch):
    module = SimpleNamespace(
        Linear4bit=Linear4bit, Params4bit=lambda data, **options: torch.nn.Parameter(data)
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(nn=module))
    model, gpu = tiny.build().model, torch.device("cuda", 1)
    quantize_llm(model, gpu)  # 32 inputs: refused on a CPU
    made = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    assert len(made) == 14 and all(layer.quantised_on == gpu for layer in made)
