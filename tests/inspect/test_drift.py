"""Drift: distances are those of the weights that act, entropies those of eager attention, norms those of the stream."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from llavit.inspect.drift import load_reference, qkv_drift, qkv_weights
from llavit.inspect.inputs import one_image
from llavit.inspect.tokens import entropy_bits, token_statistics
from llavit.model.quantize import quantize_int8
from llavit.model.routing import routed_linears
from tests.model.families import LLMS
from tests.model.families import tiny as tiny_family
from tests.tiny import HEAD_DIM, save_parts

LLAVA = {"visual_qkv": False, "bidirectional_visual_attention": False}


@pytest.mark.parametrize("llm", LLMS)
def test_fresh_copies_are_no_distance_apart_and_a_known_change_is_measured(llm):
    model = tiny_family(llm)
    model.copy_text_to_visual()
    fresh = qkv_drift(model)
    count = len(model.model.language_model.layers)
    assert fresh.relative.shape == fresh.cosine.shape == (1, count, 3) and fresh.pairs == ["visual to text"]
    assert (fresh.relative == 0).all() and np.allclose(fresh.cosine, 1)
    heads, groups, width = 4, 2, HEAD_DIM
    with torch.no_grad():
        attention = model.model.language_model.layers[1].self_attn
        if llm == "phi3":  # fused: its second part is k
            part = attention.qkv_proj.visual.weight[heads * width : (heads + groups) * width]
        else:
            part = attention.k_proj.visual.weight
        part.mul_(-1.5)
        if llm.startswith("qwen2"):
            attention.k_proj.visual.bias.mul_(-1.5)
    found = qkv_drift(model)
    expected = np.zeros((count, 3))
    expected[1, 1] = 2.5
    np.testing.assert_allclose(found.relative[0], expected, atol=1e-6)
    assert found.cosine[0, 1, 1] == pytest.approx(-1)
    assert not found.note


def test_the_distance_is_relative_to_the_second_of_the_pair():
    model = tiny_family("llama")
    projection = model.model.language_model.layers[0].self_attn.v_proj
    visual, text = projection.visual.weight, projection.text.weight
    found = qkv_drift(model)
    with torch.no_grad():
        assert found.relative[0, 0, 2] == pytest.approx(float((visual - text).norm() / text.norm()), rel=1e-5)
        cosine = torch.cosine_similarity(visual.flatten(), text.flatten(), 0)
    assert found.cosine[0, 0, 2] == pytest.approx(float(cosine), abs=1e-6)


def test_a_bias_counts_as_a_column():
    model = tiny_family("qwen2")
    model.copy_text_to_visual()
    q = model.model.language_model.layers[0].self_attn.q_proj
    with torch.no_grad():
        q.visual.bias.add_(3.0)
    found = qkv_drift(model)
    assert qkv_weights(model)["text"][0]["q"].shape == (4 * HEAD_DIM, 64 + 1)
    size = float(torch.cat([q.text.weight, q.text.bias[:, None]], 1).detach().norm())
    assert found.relative[0, 0, 0] == pytest.approx(3.0 * (4 * HEAD_DIM) ** 0.5 / size, rel=1e-5)
    assert found.relative[0, 1:].max() == 0


def test_a_llava_is_compared_with_a_reference_and_without_one_says_not_applicable(tiny):
    model, _ = tiny.build(dtype=torch.float32, **LLAVA)
    alone = qkv_drift(model)
    assert alone.pairs == [] and alone.relative.shape == (0, 2, 3) and "Not applicable" in alone.note
    assert "Not applicable" in alone.html() and alone.figure().axes
    base = load_reference(tiny.llm)
    same = qkv_drift(model, base, reference_name="base")
    assert same.pairs == ["text to reference"] and (same.relative == 0).all()
    with torch.no_grad():
        model.model.language_model.layers[1].self_attn.q_proj.weight.mul_(1.25)
    moved = qkv_drift(model, base)
    assert moved.relative[0, 1, 0] == pytest.approx(0.25) and moved.relative[0, 0].max() == 0
    assert moved.cosine[0, 1, 0] == pytest.approx(1)
    assert not moved.note


def test_a_llavit_is_compared_with_itself_and_both_halves_with_the_reference(tiny, tmp_path):
    model, processor = tiny.build(dtype=torch.float32)
    with torch.no_grad():
        for projection in routed_linears(model).values():
            projection.visual.weight.mul_(1.5)
    found = qkv_drift(model, load_reference(tiny.llm))
    assert found.pairs == ["visual to text", "text to reference", "visual to reference"]
    np.testing.assert_allclose(found.relative[:, 0, 0], [0.5, 0, 0.5], atol=1e-6)
    model.save_pretrained(tmp_path)  # a trained model is a reference as well: its text projections
    processor.save_pretrained(tmp_path)
    again = qkv_drift(model, load_reference(tmp_path))
    np.testing.assert_allclose(again.relative, found.relative, atol=1e-6)


def test_a_reference_of_other_shapes_is_refused(tiny, tmp_path):
    model, _ = tiny.build()
    other = tiny_family("llama")
    with pytest.raises(ValueError, match="expected 2 layers in reference, got 3"):
        qkv_drift(model, other)
    _, wide = save_parts(tmp_path, width=48)
    with pytest.raises(ValueError, match=rf"layer 0, q: .*shape \({4 * HEAD_DIM}, 32\), got \(\d+, 48\)"):
        qkv_drift(model, load_reference(wide))
    with pytest.raises(ValueError, match="no such folder"):
        load_reference("./not/there")
    with pytest.raises(ValueError, match="got Linear"):
        qkv_weights(nn.Linear(2, 2))


def test_quantised_weights_count_as_what_they_do():
    model = tiny_family("llama")
    expected = qkv_drift(model).relative
    quantize_int8(model)
    found = qkv_drift(model).relative
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, rtol=0.05)


def test_adapters_count_as_what_they_do_together():
    peft = pytest.importorskip("peft", reason="of the extra `lora`, which a core install lacks")
    model = tiny_family("llama")
    model.copy_text_to_visual()
    config = peft.LoraConfig(r=2, target_modules=r".*self_attn\.k_proj\.visual", init_lora_weights=False)
    torch.manual_seed(0)
    peft.inject_adapter_in_model(config, model)
    k = model.model.language_model.layers[0].self_attn.k_proj
    delta = k.visual.get_delta_weight("default")
    with torch.no_grad():
        expected = float(delta.norm() / k.text.weight.norm())
    found = qkv_drift(model.eval()).relative[0]
    assert expected > 0.01 and found[0, 1] == pytest.approx(expected, rel=1e-3)
    assert (found[:, [0, 2]] == 0).all()


def test_entropy_is_in_bits():
    even = torch.full((1, 8), 1 / 8)
    assert entropy_bits(even).item() == pytest.approx(3)
    assert entropy_bits(torch.tensor([0.5, 0.5, 0.0])).item() == pytest.approx(1)


@pytest.mark.parametrize("switches", [{}, LLAVA], ids=["llavit", "llava"])
def test_entropy_and_norms_are_those_of_an_ordinary_eager_pass(tiny, switches, monkeypatch):
    model, processor = tiny.build(dtype=torch.float32, **switches)
    model.eval()
    talks = [one_image(Image.new("RGB", (16, 16), c), q) for c, q in (("red", "What?"), ("blue", "And?!"))]
    monkeypatch.setattr("llavit.inspect.tokens.BYTES", 1)  # a layer at a time: nothing is lost between
    found = token_statistics(model, processor, talks)
    bits, norms, most = ([], []), ([], []), ([], [])
    model.set_attn_implementation("eager")
    for talk in talks:
        encoded = processor.encode(talk, add_generation_prompt=True)
        with torch.no_grad():
            out = model(
                input_ids=encoded["input_ids"][None],
                pixel_values=encoded["pixel_values"],
                output_attentions=True,
                output_hidden_states=True,
            )
        weights = torch.stack(out.attentions)[:, 0]  # (layers, heads, l, l)
        h = torch.where(weights > 0, -weights * weights.clamp(min=1e-30).log2(), 0.0).sum(-1)
        for kind, mask in enumerate((encoded["image_ids"] < 0, encoded["image_ids"] >= 0)):
            bits[kind].append(h[..., mask])
            most[kind].append((weights[0, 0] > 0).sum(-1)[mask].double().log2())
            norms[kind].append(torch.stack([s[0, mask].norm(dim=-1) for s in out.hidden_states[:-1]]))
    for kind in range(2):
        np.testing.assert_allclose(found.entropy[kind], torch.cat(bits[kind], -1).mean(-1), atol=1e-4)
        np.testing.assert_allclose(found.ceiling[kind], torch.cat(most[kind]).mean().item(), atol=1e-6)
        expected = np.percentile(torch.cat(norms[kind], -1).numpy(), (10, 50, 90), axis=1).T
        np.testing.assert_allclose(found.norms[kind, :-1], expected, rtol=1e-4)
    assert found.tokens[1] == 8 and found.conversations == 2
    assert (found.entropy <= found.ceiling[..., None] + 1e-6).all()


def test_patches_of_a_llavit_may_see_more_than_those_of_a_llava(tiny):
    talk = [one_image(Image.new("RGB", (16, 16), "red"))]
    ceilings = []
    for switches in ({}, {"bidirectional_visual_attention": False}):
        model, processor = tiny.build(dtype=torch.float32, **switches)
        ceilings.append(token_statistics(model.eval(), processor, talk).ceiling)
    assert (ceilings[0][1] > ceilings[1][1]).all() and (ceilings[0][0] == ceilings[1][0]).all()


def test_the_command_reads_weights_as_they_were_saved_where_bfloat16_is_fast_too(tiny, tmp_path, monkeypatch):
    """A model that training moved by a thousandth; in bfloat16 the rounding alone is a distance twice as far."""
    from typer.testing import CliRunner

    from llavit.cli import app

    monkeypatch.setattr("llavit.precision.cpu_flags", lambda: frozenset({"amx_bf16"}))
    model, processor = tiny.build(dtype=torch.float32)
    with torch.no_grad():
        for projection in routed_linears(model).values():
            projection.text.weight.mul_(1.001)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    command = ["inspect", "drift", tmp_path / "model", "--reference", tiny.llm, "-o", tmp_path / "out"]
    done = CliRunner().invoke(app, [str(part) for part in command])
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "out/drift.json").read_text())
    assert facts["settings"]["dtype"] == "float32"
    arrays = np.load(tmp_path / "out/drift.npz")
    np.testing.assert_allclose(arrays["relative"][facts["pairs"].index("text to reference")], 1e-3, rtol=1e-3)


def test_conversations_need_images(tiny):
    model, processor = tiny.build()
    with pytest.raises(ValueError, match="conversation 0: expected an image"):
        token_statistics(model, processor, [[{"role": "user", "content": "Hi"}]])
    with pytest.raises(ValueError, match="at least one, got none"):
        token_statistics(model, processor, [])


def test_the_command_compares_models_with_a_reference_and_looks_at_an_image(tiny, tmp_path):
    from typer.testing import CliRunner

    from llavit.cli import app

    for name, switches in (("llavit", {}), ("llava", LLAVA)):
        model, processor = tiny.build(dtype=torch.float32, **switches)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    models = [str(tmp_path / "llava"), str(tmp_path / "llavit")]
    run = CliRunner().invoke
    looks = ["--image", str(tmp_path / "red.png"), "--dtype", "float32"]
    done = run(
        app, ["inspect", "drift", *models, "--reference", str(tiny.llm), *looks, "-o", str(tmp_path / "a")]
    )
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "a/drift-2.json").read_text())
    assert set(facts["means over layers"]) == {"visual to text", "text to reference", "visual to reference"}
    assert facts["tokens"]["tokens"]["visual"] == 4
    arrays = np.load(tmp_path / "a/drift-1.npz")
    assert arrays["relative"].shape == (1, 2, 3) and arrays["entropy"].shape == (2, 2, 4)
    assert arrays["norms"].shape == (2, 3, 3)
    done = run(app, ["inspect", "drift", models[0], "-o", str(tmp_path / "b")])
    assert done.exit_code == 0 and "Not applicable" in done.output and "take --image" in done.output
    assert "entropy" not in np.load(tmp_path / "b/drift.npz")
