"""Checkpoints of LLaVA's own repository, against transformers' LLaVA with the same weights."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionModel,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.image_utils import OPENAI_CLIP_MEAN
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from typer.testing import CliRunner

from llavit import LlavitForConditionalGeneration, LlavitProcessor
from llavit.card import collect_facts
from llavit.cli import app
from llavit.convert import convert_llava
from llavit.loading import load_model
from llavit.model.chat import DEFAULT_CHAT_TEMPLATE
from llavit.train.model_config import model_config
from llavit.train.recipe import ModelSpec
from llavit.train.run import train
from tests.tiny import SIDE, save_parts, tokenizer

WORDS = 259
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]


class Own:
    """A LLaVA of transformers, and its weights under the names of LLaVA's own repository."""

    def __init__(self, folder):
        self.vision, self.llm = save_parts(folder)
        text = AutoModelForCausalLM.from_pretrained(self.llm)
        tower = CLIPVisionModel.from_pretrained(self.vision)
        text.resize_token_embeddings(WORDS + 1, mean_resizing=False)
        config = LlavaConfig(
            vision_config=tower.config,
            text_config=text.config,
            image_token_index=WORDS,
            vision_feature_layer=-2,
        )
        torch.manual_seed(1)
        model = LlavaForConditionalGeneration(config).eval()
        model.model.language_model.load_state_dict(text.model.state_dict())
        model.model.vision_tower.load_state_dict(tower.state_dict())
        model.tie_weights()
        self.model = model
        self.text = {
            name: tensor[:WORDS].clone() if "embed_tokens" in name or "lm_head" in name else tensor
            for name, tensor in text.state_dict().items()
        }
        layers = {"linear_1": "0", "linear_2": "2"}
        self.projector = {
            "model.mm_projector." + ".".join([layers[name.split(".")[0]], name.split(".")[1]]): tensor
            for name, tensor in model.model.multi_modal_projector.state_dict().items()
        }
        for tensor in self.projector.values():
            tensor.mul_(8)  # so that images matter
        self.tower = {
            f"model.vision_tower.vision_tower.vision_model.{name.removeprefix('vision_model.')}": tensor
            for name, tensor in tower.state_dict().items()
        }

    def stated(self, **changes):
        text = json.loads((self.llm / "config.json").read_text())
        return text | {
            "model_type": "llava_llama",
            "architectures": ["LlavaLlamaForCausalLM"],
            "_name_or_path": str(self.llm),
            "mm_vision_tower": str(self.vision),
            "mm_projector_type": "mlp2x_gelu",
            "mm_hidden_size": 32,
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "image_aspect_ratio": "pad",
            "tune_mm_mlp_adapter": False,
            "freeze_mm_mlp_adapter": False,
            "use_mm_proj": True,
            "tokenizer_model_max_length": 2048,
            **changes,
        }

    def save(self, folder, weights, name="pytorch_model.bin", **changes):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.stated(**changes)))
        torch.save(weights, folder / name)
        return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return Own(tmp_path_factory.mktemp("parts"))


def assert_same_answers(own, folder):
    """The converted folder's logits are those of transformers' LLaVA on what the converted processor makes."""
    model, processor = load_model(folder, dtype="float32")
    assert not model.config.visual_qkv and not model.config.bidirectional_visual_attention
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
    text = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    inputs = processor(images=[picture], text=text, return_tensors="pt")
    plain = LlavaForConditionalGeneration.from_pretrained(
        folder
    ).eval()  # transformers alone reads it as well
    assert type(AutoProcessor.from_pretrained(folder)) is LlavaProcessor
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
        got = model(**inputs).logits[..., :WORDS]
        wanted = own.model(**inputs).logits[..., :WORDS]
        blind = model(**{**inputs, "pixel_values": 0 * inputs["pixel_values"]}).logits[..., :WORDS]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert (got - blind).abs().max() > 1e-3


def test_a_whole_model_in_two_files_answers_as_llava(own, tmp_path):
    source = own.save(tmp_path / "own", dict(list(own.text.items())[:5]), "pytorch_model-00001-of-00002.bin")
    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}  # as old ones have
    rest = dict(list(own.text.items())[5:]) | own.projector | inverse
    own.save(source, rest, "pytorch_model-00002-of-00002.bin")
    tokenizer().save_pretrained(source)
    convert_llava(source, tmp_path / "new")
    assert_same_answers(own, tmp_path / "new")
    stated = json.loads((tmp_path / "new/config.json").read_text())
    assert not [
        key for key in stated["text_config"] if key.startswith(("mm_", "image_", "tune_", "tokenizer_"))
    ]


def test_training_makes_a_llavit_of_it(own, tmp_path, tiny):
    source = own.save(tmp_path / "own", own.text | own.projector)
    tokenizer().save_pretrained(source)
    convert_llava(source, tmp_path / "new")
    start = [f"model={{checkpoint: {tmp_path / 'new'}}}"]
    short = ["stages.0.steps=1", "stages.1.steps=1"]
    trained = train(tiny.recipe(*start, *short), output=tmp_path / "run", progress=False)
    model = LlavitForConditionalGeneration.from_pretrained(trained)
    assert model.config.visual_qkv and model.config.bidirectional_visual_attention
    query = model.model.language_model.layers[0].self_attn.q_proj
    assert 0 < (query.visual.weight - own.text["model.layers.0.self_attn.q_proj.weight"]).abs().max() < 0.1

    off = ["model.visual_qkv=false", "model.bidirectional_visual_attention=false"]
    off += ["stages.0.learning_rates.visual_qkv=0", "stages.1.learning_rates.visual_qkv=0"]
    recipe = tiny.recipe(*start, *short, *off)
    assert not model_config(recipe.model).visual_qkv
    trained = train(recipe, output=tmp_path / "llava", progress=False)
    config = LlavitForConditionalGeneration.from_pretrained(trained).config
    assert not config.visual_qkv and not config.bidirectional_visual_attention


def test_a_tower_that_was_trained_comes_with_the_checkpoint(own, tmp_path):
    tower = {name: tensor * 1.5 for name, tensor in own.tower.items()}
    source = own.save(tmp_path / "own", own.text | own.projector | tower)
    tokenizer().save_pretrained(source)
    convert_llava(source, tmp_path / "new")
    bases = {base.part: base.name for base in collect_facts(tmp_path / "new").bases}
    assert bases == {"vision tower": own.vision.name}
    model = LlavitForConditionalGeneration.from_pretrained(tmp_path / "new")
    names = [name for name in model.model.vision_tower.state_dict() if name.endswith("q_proj.weight")]
    assert names
    for name in names:
        before = own.model.model.vision_tower.state_dict()[name]
        torch.testing.assert_close(model.model.vision_tower.state_dict()[name], 1.5 * before)


def test_a_projector_alone_takes_the_llm_that_it_names(own, tmp_path):
    source = own.save(tmp_path / "own", own.projector, "mm_projector.bin")
    convert_llava(source, tmp_path / "new")
    assert_same_answers(own, tmp_path / "new")


@pytest.mark.parametrize("base", ["llm", "llava"])
def test_adapters_are_merged_into_their_llm_or_their_llava(own, tmp_path, base):
    """finetune_lora.sh starts from an LLM, finetune_task_lora.sh from a whole LLaVA."""
    peft = pytest.importorskip("peft", reason="adapters need peft")
    named = own.llm
    if base == "llava":
        other = {name: tensor + 1 for name, tensor in own.projector.items()}  # the adapters' own counts
        named = own.save(tmp_path / "llava", own.text | other | own.tower)
        tokenizer().save_pretrained(named)
    lm = AutoModelForCausalLM.from_pretrained(own.llm)
    adapted = peft.get_peft_model(
        lm, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    )
    torch.manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "own")
    names = {f"base_model.model.{name}": tensor for name, tensor in own.projector.items()}
    source = own.save(tmp_path / "own", names, "non_lora_trainables.bin")
    convert_llava(source, tmp_path / "new", llm=named)

    merged = adapted.merge_and_unload()
    merged.resize_token_embeddings(WORDS + 1, mean_resizing=False)
    before = {name: tensor.clone() for name, tensor in own.model.model.language_model.state_dict().items()}
    own.model.model.language_model.load_state_dict(merged.model.state_dict())
    try:
        assert_same_answers(own, tmp_path / "new")
    finally:
        own.model.model.language_model.load_state_dict(before)


def test_images_are_padded_to_a_square_where_llava_did_so(own, tmp_path):
    wide = Image.new("RGB", (40, 20), (255, 0, 0))
    for fit in ("pad", None):
        source = own.save(tmp_path / f"own-{fit}", own.projector, "mm_projector.bin", image_aspect_ratio=fit)
        convert_llava(source, tmp_path / f"new-{fit}")
    padded, cropped = (
        LlavitProcessor.from_pretrained(tmp_path / f"new-{fit}").pixel_values([wide])[0]
        for fit in ("pad", None)
    )
    assert padded.shape == cropped.shape == (3, SIDE, SIDE)
    square = Image.new("RGB", (40, 40), tuple(int(255 * mean) for mean in OPENAI_CLIP_MEAN))
    square.paste(wide, (0, 10))  # LLaVA's expand2square
    clip = CLIPImageProcessorPil.from_pretrained(own.vision)
    assert torch.equal(padded, clip(square, return_tensors="pt")["pixel_values"][0])
    assert padded[:, 0].abs().max() < 0.02  # the mean colour, which normalises to nothing
    assert cropped[0].min() > 1  # red throughout
    torch.testing.assert_close(padded[:, SIDE // 2], cropped[:, SIDE // 2])


def test_a_tower_whose_images_are_not_cropped_keeps_their_size(own, tmp_path):
    shutil.copytree(own.vision, tmp_path / "vision")
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path / "vision")
    source = own.save(tmp_path / "own", own.projector, "mm_projector.bin")
    convert_llava(source, tmp_path / "new", vision_tower=tmp_path / "vision")
    wide = Image.new("RGB", (40, 20))
    pixels = LlavitProcessor.from_pretrained(tmp_path / "new").pixel_values([wide])
    assert pixels.shape == (1, 3, SIDE, SIDE)


def test_an_answer_ends_in_every_way_that_the_checkpoint_states(own, tmp_path):
    source = own.save(tmp_path / "own", own.text | own.projector)
    tokenizer().save_pretrained(source)
    stated = {"eos_token_id": [2, 7], "max_length": 4096, "temperature": 0.9, "top_p": 0.6}
    (source / "generation_config.json").write_text(json.dumps(stated))
    convert_llava(source, tmp_path / "new")
    assert load_model(tmp_path / "new")[0].generation_config.eos_token_id == [2, 7]


def test_the_conversation_is_llavas_where_the_tokenizer_has_none(own, tmp_path):
    source = own.save(tmp_path / "own", own.text | own.projector)
    words = tokenizer()
    words.chat_template = None
    words.save_pretrained(source)
    convert_llava(source, tmp_path / "new")
    shown = LlavitProcessor.from_pretrained(tmp_path / "new").apply_chat_template(
        QUESTION, add_generation_prompt=True
    )
    assert shown == f"{SYSTEM} USER: <image>\nWhat? ASSISTANT:"


def test_training_on_an_llm_with_llamas_tokenizer_reads_the_tokens_that_llava_reads(own, tmp_path, tiny):
    shutil.copytree(own.llm, tmp_path / "llm")
    for file in (tmp_path / "llm").glob("token*"):
        file.unlink()
    (tmp_path / "llm/chat_template.jinja").unlink(missing_ok=True)
    llamas_tokenizer(legacy=False).save_pretrained(tmp_path / "llm")
    recipe = tiny.recipe(f"model.llm={tmp_path / 'llm'}", "stages.0.steps=1", "stages.1.steps=1")
    trained = train(recipe, output=tmp_path / "run", progress=False)
    processor = LlavitProcessor.from_pretrained(trained)
    shown = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    assert shown == "USER: <image> \nWhat?\nASSISTANT:"

    template = DEFAULT_CHAT_TEMPLATE.replace("USER", "ASKED")
    spec = ModelSpec(checkpoint=str(trained), chat_template=template)
    further = replace(tiny.recipe("stages.0.steps=1", "stages.1.steps=1"), model=spec)
    further = LlavitProcessor.from_pretrained(train(further, output=tmp_path / "further", progress=False))
    shown = further.apply_chat_template(QUESTION, add_generation_prompt=True)
    assert shown == "ASKED: <image> \nWhat?\nASSISTANT:"

    answer = {"role": "assistant", "content": "Us."}
    seen = {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (20, 20))}]}
    caption = processor.encode([seen, answer], return_labels=True, style="plain")
    behind = caption["image_ids"] < 0
    wanted = processor.tokenizer.encode("Us.\n", add_special_tokens=False)
    assert caption["input_ids"][behind].tolist()[-len(wanted) :] == wanted
    assert caption["labels"][behind].tolist()[-len(wanted) :] == wanted
    assert processor.tokenizer.convert_ids_to_tokens(wanted)[0] == "\u2581U"


def llamas_tokenizer(legacy):
    """A tokenizer of Llama's class with a token for each letter, as many as the LLM has."""
    letters = [
        "\u2581",
        "U",
        "S",
        "E",
        "R",
        "\u2581U",
        "\u2581A",
        ":",
        "?",
        ".",
        ",",
        "'",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "<0x0A>", "\n", *letters])}
    vocab |= {f"unused{index}": index for index in range(len(vocab), WORDS)}
    merges = [("\u2581", "U"), ("\u2581", "A")]
    vocab["A"] = vocab.pop("unused258")
    return LlamaTokenizer(vocab=vocab, merges=merges, legacy=legacy, add_bos_token=True)


@pytest.mark.parametrize(
    ("parts", "legacy"),
    [
        ("<image>What is it?", False),
        ("<image>What is it?", True),
        ("<image><image><image>\nWhat?", False),
        ("What is <image>", False),
        ("<image>and <image>?", False),
        ("What?", False),
    ],
)
def test_the_tokens_around_an_image_are_llavas(own, tmp_path, parts, legacy):
    """LLaVA tokenises piece by piece what is between images (`tokenizer_image_token`), each with a space before it."""
    source = own.save(tmp_path / "own", own.text | own.projector)
    words = llamas_tokenizer(legacy)
    words.save_pretrained(source)
    stated = json.loads((source / "tokenizer_config.json").read_text()) | {"legacy": legacy}
    (source / "tokenizer_config.json").write_text(json.dumps(stated))
    convert_llava(source, tmp_path / "new")
    processor = LlavitProcessor.from_pretrained(tmp_path / "new")
    content = [
        {"type": "image"} if part == "<image>" else {"type": "text", "text": part}
        for part in re.split("(<image>)", parts)
        if part
    ]
    shown = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    got = processor.tokenizer(shown).input_ids

    plain = parts.replace("<image>What", "<image>\nWhat").replace("<image>and", "<image>\nand")
    wanted = [words.bos_token_id]
    for index, piece in enumerate(f"{SYSTEM} USER: {plain} ASSISTANT:".split("<image>")):
        tokens = words.encode(f" {piece}", add_special_tokens=False) if piece else []
        wanted += [processor.image_token_id] * (index > 0) + tokens
    assert got == wanted
    assert ("<image> " in shown) == (not legacy and "<image>" in parts)


def test_a_tokenizer_that_is_a_file_of_sentencepiece_alone_is_read(own, tmp_path):
    """As liuhaotian/llava-v1.5-7b and lmsys/vicuna-7b-v1.5 have it."""
    pytest.importorskip("sentencepiece", reason="an environment from before llavit depended on it")
    written = import_protobuf().ModelProto()
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3} | {f"<0x{byte:02X}>": 6 for byte in range(256)}
    for piece, kind in kinds.items():
        written.pieces.add(piece=piece, score=0, type=kind)
    written.trainer_spec.model_type, written.trainer_spec.byte_fallback = 2, True
    source = own.save(tmp_path / "own", own.text | own.projector)
    (source / "tokenizer.model").write_bytes(written.SerializeToString())
    stated = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}
    (source / "tokenizer_config.json").write_text(json.dumps(stated))
    convert_llava(source, tmp_path / "new")
    ids = LlavitProcessor.from_pretrained(tmp_path / "new").tokenizer("A\n").input_ids
    assert ids[0] == 1 and ids[-2:] == [3 + ord("A"), 3 + ord("\n")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type: expected 'mlp2x_gelu'.*got 'linear'"),
        ({"mm_vision_select_feature": "cls_patch"}, "expected 'patch'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"image_aspect_ratio": "anyres"}, "several views"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "several views"),
        ({"s2": True}, "one scale"),
        ({"model_type": "llava_mpt"}, "got model_type 'llava_mpt'"),
        ({"text_config": {}}, "Hugging Face's format already"),
    ],
)
def test_what_is_not_read_is_refused_before_anything_is_loaded(own, tmp_path, changes, message):
    source = own.save(tmp_path / "own", own.projector, "mm_projector.bin", **changes)
    with pytest.raises(ValueError, match=message):
        convert_llava(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_that_are_missing_are_named(own, tmp_path):
    weights = {name: tensor for name, tensor in own.text.items() if "layers.1.mlp.up_proj" not in name}
    source = own.save(tmp_path / "own", weights | own.projector)
    tokenizer().save_pretrained(source)
    with pytest.raises(
        ValueError, match=r"missing or unknown: 1, first model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        convert_llava(source, tmp_path / "new")
    source = own.save(tmp_path / "bare", own.text)
    tokenizer().save_pretrained(source)
    with pytest.raises(FileNotFoundError, match="there is no projector"):
        convert_llava(source, tmp_path / "new")
    (source / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="bare: expected weights"):
        convert_llava(source, tmp_path / "new")


@pytest.mark.parametrize(("key", "argument"), [("_name_or_path", "llm"), ("mm_vision_tower", "vision_tower")])
def test_a_part_that_is_named_by_a_path_of_another_machine(own, tmp_path, key, argument):
    source = own.save(tmp_path / "own", own.projector, "mm_projector.bin", **{key: "./checkpoints/part"})
    with pytest.raises(ValueError, match=f"{argument} './checkpoints/part'.*say with {argument} where it is"):
        convert_llava(source, tmp_path / "new")


def test_the_command_prints_the_folder(own, tmp_path):
    source = own.save(
        tmp_path / "own", own.projector, "mm_projector.bin", _name_or_path="gone", mm_vision_tower="gone"
    )
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}<s>{{ m['content'] }}{% endfor %}")
    words = ["convert", source, "--to", tmp_path / "new", "--llm", own.llm, "--vision-tower", own.vision]
    words += ["--chat-template", tmp_path / "mine.jinja"]
    shown = CliRunner().invoke(app, [str(word) for word in words])
    assert shown.stdout == f"{tmp_path / 'new'}\n"
    assert (
        LlavitProcessor.from_pretrained(tmp_path / "new").apply_chat_template(QUESTION) == "<s><image>\nWhat?"
    )
