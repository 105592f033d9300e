"""Building from parts."""

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionModel,
)

from llavit import LlavitForConditionalGeneration, LlavitProcessor, build_llavit
from llavit.model.routing import routed_linears
from tests.tiny import save_parts, tokenizer

from .families import LLMS, SIDE, TOWERS

MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.new("RGB", (9, 9), "red")},
            {"type": "text", "text": "?"},
        ],
    }
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_parts(tmp_path_factory.mktemp("parts"))


def answer(model, processor) -> list[int]:
    inputs = processor.apply_chat_template(
        MESSAGES, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return model.generate(**inputs, max_new_tokens=4, do_sample=False)[0].tolist()


def test_folders_become_a_model_that_answers_and_survives_saving(parts, tmp_path):
    model, processor = build_llavit(*parts, vision_feature_layer=[1, -2])
    assert processor.image_token_id == model.config.image_token_id
    assert model.config.image_seq_length == processor.image_seq_length == 4
    said = answer(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = LlavitForConditionalGeneration.from_pretrained(tmp_path)
    assert answer(again, LlavitProcessor.from_pretrained(tmp_path)) == said
    assert again.generation_config.suppress_tokens == [processor.image_token_id]


def test_the_llms_weights_are_taken_as_they_are_and_visual_qkv_are_copies(parts):
    llm = AutoModelForCausalLM.from_pretrained(parts[1])
    model, _ = build_llavit(*parts, vision_feature_layer=-2)
    ours = {
        name.replace(".text.", "."): weight
        for name, weight in model.model.language_model.state_dict().items()
    }
    for name, weight in llm.model.state_dict().items():
        assert torch.equal(ours[name][: len(weight)], weight), name
    for projection in routed_linears(model).values():
        assert torch.equal(projection.text.weight, projection.visual.weight)
        assert projection.text.weight.data_ptr() != projection.visual.weight.data_ptr()
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_tied_embeddings_stay_tied(parts):
    model, processor = build_llavit(*parts, vision_feature_layer=-2)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert len(model.lm_head.weight) == len(processor.tokenizer)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("llm", ["qwen2", "phi3", "gemma3"])
def test_any_tower_with_any_llm_as_loaded_modules(tower, llm):
    classes = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel, "dinov2": Dinov2Model}
    config = LLMS[llm]()
    config.vocab_size = 300
    model, processor = build_llavit(
        classes[tower](TOWERS[tower]()),
        AutoModelForCausalLM.from_config(config),
        vision_feature_layer=[1, 2],
        tokenizer=tokenizer(),
    )
    assert processor.image_seq_length == (SIDE // 4) ** 2
    assert len(answer(model, processor)) > 4


def test_the_vision_tower_of_a_two_tower_model_is_taken():
    both = CLIPModel(CLIPConfig(vision_config=TOWERS["clip"]().to_dict()))
    llm = LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    model, _ = build_llavit(both, llm, vision_feature_layer=-2, tokenizer=tokenizer())
    assert isinstance(model.model.vision_tower, CLIPVisionModel)


def test_dinov2_takes_another_image_size_and_clip_does_not():
    def llm():
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        )

    model, processor = build_llavit(
        Dinov2Model(TOWERS["dinov2"]()), llm(), vision_feature_layer=-1, image_size=20, tokenizer=tokenizer()
    )
    assert processor.image_seq_length == 25
    answer(model, processor)
    with pytest.raises(ValueError, match="got image_size=20"):
        build_llavit(
            CLIPVisionModel(TOWERS["clip"]()),
            llm(),
            vision_feature_layer=-1,
            image_size=20,
            tokenizer=tokenizer(),
        )


def test_errors_say_what_was_expected(parts):
    with pytest.raises(ValueError, match=r"layers -4 to 3.*got 12"):
        build_llavit(*parts, vision_feature_layer=[1, 12])
    llm = LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match="pass tokenizer="):
        build_llavit(
            CLIPVisionModel(CLIPVisionConfig(**TOWERS["clip"]().to_dict())), llm, vision_feature_layer=-2
        )


def test_a_chat_template_of_ones_own_is_used(parts):
    _, processor = build_llavit(
        *parts,
        vision_feature_layer=-2,
        chat_template="{% for m in messages %}[{{ m['content'] }}]{% endfor %}",
    )
    assert processor.render(MESSAGES) == "[<image>\n?]"


@pytest.mark.parametrize("switches", [{"visual_qkv": False}, {"visual_qkv_start": "random"}])
def test_one_seed_gives_one_projector_whatever_the_other_switches(parts, switches):
    projectors = []
    for chosen in ({}, switches):
        torch.manual_seed(3)
        built = build_llavit(*parts, vision_feature_layer=[1, -2], **chosen).model
        projectors.append(built.model.multi_modal_projector.state_dict())
    assert all(torch.equal(projectors[0][name], projectors[1][name]) for name in projectors[0])


def test_visual_qkv_can_start_at_random_with_the_spread_of_the_text_qkv(parts):
    model = build_llavit(*parts, vision_feature_layer=-2, visual_qkv_start="random").model
    for projection in routed_linears(model).values():
        text, visual = projection.text.weight, projection.visual.weight
        assert not torch.equal(text, visual)
        assert visual.std().item() == pytest.approx(text.std().item(), rel=0.15)
        assert abs(torch.corrcoef(torch.stack([text.flatten(), visual.flatten()]))[0, 1]) < 0.2
