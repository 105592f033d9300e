import io

import pytest
import torch
from rich.console import Console

from llavit.train.parts import PARTS, freeze, optimizer_groups, parameters_by_part, part_of, parts_table


@pytest.fixture
def model(tiny):
    return tiny.build().model


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def test_every_parameter_belongs_to_one_part_and_a_tied_head_counts_once(model):
    parts = parameters_by_part(model)
    assert tuple(parts) == PARTS
    assert all(parts.values())
    assert sum(count(part.values()) for part in parts.values()) == count(model.parameters())
    embeddings = model.get_input_embeddings().weight
    assert sum(parameter is embeddings for parameter in parts["llm"].values()) == 1


def test_the_visual_projections_are_a_part_of_their_own(model):
    names = parameters_by_part(model)["visual_qkv"]
    assert len(names) == 2 * 3  # layers x (q, k, v)
    assert all(".visual." in name and "language_model" in name for name in names)
    assert part_of("model.language_model.layers.0.self_attn.q_proj.text.weight") == "llm"


def test_a_parameter_of_no_part_is_an_error():
    with pytest.raises(ValueError, match=r"parameter model.audio_tower.weight belongs to none of the parts"):
        part_of("model.audio_tower.weight")


def test_freezing_lets_exactly_the_parts_with_a_rate_train(model):
    freeze(model, {"projector": 1e-3, "visual_qkv": 0.0, "llm": 1e-5})
    training = {
        part: {parameter.requires_grad for parameter in parameters.values()}
        for part, parameters in parameters_by_part(model).items()
    }
    assert training == {"vision_tower": {False}, "projector": {True}, "visual_qkv": {False}, "llm": {True}}


def test_each_part_has_its_rate_and_only_matrices_decay(model):
    rates = {"vision_tower": 0.0, "projector": 1e-3, "visual_qkv": 2e-4, "llm": 1e-5}
    freeze(model, rates)
    groups = optimizer_groups(model, rates, weight_decay=0.1)
    assert {group["part"]: group["lr"] for group in groups} == {part: rates[part] for part in PARTS[1:]}
    for group in groups:
        assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] > 0}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_llava_has_no_visual_projections_and_trains_all_the_same(tiny):
    model = tiny.build(visual_qkv=False).model
    rates = {"projector": 1e-3, "visual_qkv": 2e-4}
    freeze(model, rates)
    assert parameters_by_part(model)["visual_qkv"] == {}
    assert {group["part"] for group in optimizer_groups(model, rates, 0.0)} == {"projector"}


def test_a_stage_that_trains_nothing_is_an_error(tiny):
    with pytest.raises(ValueError, match="nothing to train: parts with a learning rate are visual_qkv"):
        freeze(tiny.build(visual_qkv=False).model, {"visual_qkv": 1e-3})


def test_the_table_shows_parameters_state_and_rate_of_each_part(tiny):
    model = tiny.build(visual_qkv=False).model
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(parts_table(model, {"projector": 1e-3, "visual_qkv": 1e-3}, "Stage pretrain"))
    lines = {line.split()[1]: line for line in console.export_text().splitlines() if "│" in line}
    projector = count(model.model.multi_modal_projector.parameters())
    assert (
        f"{projector:,}" in lines["projector"]
        and "trains" in lines["projector"]
        and "0.001" in lines["projector"]
    )
    assert "none in this model" in lines["visual_qkv"]
    assert "frozen" in lines["llm"]
    assert f"{count(model.parameters()):,}" in lines["total"] and f"{projector:,} train" in lines["total"]


def test_frozen_parts_get_no_gradient_but_let_it_through(tiny):
    model, processor = tiny.build()
    freeze(model, {"projector": 1e-3})
    sample = processor.encode(
        [
            {"role": "user", "content": [{"type": "image", "image": str(tiny.data.parent / "0.png")}]},
            {"role": "assistant", "content": "a"},
        ],
        return_labels=True,
    )
    pixels = sample.pop("pixel_values")
    model(**{key: value[None] for key, value in sample.items()}, pixel_values=pixels).loss.backward()
    assert all(parameter.grad is not None for parameter in parameters_by_part(model)["projector"].values())
    assert all(parameter.grad is None for parameter in parameters_by_part(model)["llm"].values())
    assert torch.isfinite(next(iter(parameters_by_part(model)["projector"].values())).grad).all()


def test_text_qkv_are_a_part_of_their_own_where_they_have_a_rate(tiny):
    for switch in (True, False):
        model = tiny.build(visual_qkv=switch).model
        rates = {"projector": 1e-3, "llm": 0.0, "text_qkv": 2e-4}
        freeze(model, rates)
        training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        apart = parameters_by_part(model, text_qkv_apart=True)
        assert set(apart["text_qkv"]) | set(apart["projector"]) == training
        assert len(apart["text_qkv"]) == 2 * 3 and not any(".visual." in name for name in apart["text_qkv"])
        groups = optimizer_groups(model, rates, weight_decay=0.0)
        assert {group["part"]: group["lr"] for group in groups} == {"projector": 1e-3, "text_qkv": 2e-4}
        assert sum(count(part.values()) for part in apart.values()) == count(model.parameters())


def test_text_qkv_stay_frozen_where_the_rest_of_the_llm_trains(tiny):
    model = tiny.build().model
    freeze(model, {"llm": 1e-3, "text_qkv": 0.0})
    apart = parameters_by_part(model, text_qkv_apart=True)
    assert not any(parameter.requires_grad for parameter in apart["text_qkv"].values())
    assert all(parameter.requires_grad for parameter in apart["llm"].values())
