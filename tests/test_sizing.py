"""Serving sizes against what real models and caches take, and against what is known of models."""

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache
from typer.testing import CliRunner

from llavit import LlavitForConditionalGeneration
from llavit.cli import app
from llavit.model.quantize import quantize_int8
from llavit.serve.slots import SlotCache
from llavit.sizing import BLOCK, ServingSize, serving_config, serving_size
from llavit.train.model_config import model_config
from llavit.train.recipe import ModelSpec
from tests.model.families import LLMS, PATCHES, config_of, image_prompt, pixels, tiny

CLIP = "openai/clip-vit-large-patch14-336"
DOC = Path(__file__).parents[1] / "docs/serving-sizes.md"


def storages(tensors):
    """The bytes of tensors, those that share memory once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("llm", ["llama", "qwen2", "phi3"])
def test_weights_are_as_many_bytes_as_a_real_model_holds(llm, tied, dtype):
    config = config_of(llm)
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = LlavitForConditionalGeneration._from_config(config)
    model = quantize_int8(model.bfloat16()) if dtype == "int8" else model.to(getattr(torch, dtype))
    assert serving_size(config_like(config), dtype).weights == storages(model.parameters())


def config_like(config):
    """A copy without what quantising writes into it."""
    values = config.to_dict()
    values.pop("quantization_config", None)
    return type(config).from_dict(values)


@pytest.mark.parametrize("llm", LLMS)
def test_keys_and_values_are_as_many_bytes_as_a_real_cache_holds(llm):
    ids = image_prompt([3, 4, 5])
    cache = DynamicCache()
    with torch.no_grad():
        tiny(llm)(
            input_ids=torch.tensor([ids]), pixel_values=pixels(1), past_key_values=cache, use_cache=True
        )
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    size = serving_size(config_of(llm), "float32")
    assert size.visual_tokens == PATCHES and len(ids) == 3 + PATCHES + 1
    assert size.token * len(ids) == held
    slots = SlotCache(config_of(llm).text_config, slots=2, length=5, dtype=torch.float32, device="cpu")
    assert size.token * 2 * 5 == sum(t.nbytes for t in (*slots.keys, *slots.values))


@pytest.mark.parametrize(
    ("llm", "token", "visual_qkv"),
    [  # layers, width of q, width of k and of v
        ("starter:llm", 2 * 30 * 3 * 64 * 2, 30 * 576 * (576 + 2 * 192)),
        ("Qwen/Qwen2.5-7B-Instruct", 57_344, 28 * (3584 + 1) * (3584 + 2 * 512)),  # with biases
        ("lmsys/vicuna-13b-v1.5", 819_200, 40 * 5120 * 3 * 5120),
        ("meta-llama/Llama-3.1-8B-Instruct", 131_072, 32 * 4096 * (4096 + 2 * 1024)),
    ],
)
def test_known_models_have_the_known_cache_and_visual_projections(llm, token, visual_qkv):
    size = serving_size(model_config(ModelSpec(vision=CLIP, llm=llm, vision_feature_layer=(8, 16, -2))))
    assert (size.token, size.image, size.parameters["visual_qkv"]) == (token, 576 * token, visual_qkv)
    assert size.weights == 2 * sum(size.parameters.values())
    llava = serving_size(model_config(ModelSpec(vision=CLIP, llm=llm, visual_qkv=False)))
    assert llava.parameters["visual_qkv"] == 0 and llava.token == token


@pytest.mark.parametrize(("llm", "visual_qkv"), [("llama", True), ("qwen2", True), ("phi3", False)])
def test_devices_share_matrices_and_heads_and_repeat_the_rest(llm, visual_qkv):
    config = config_of(llm, visual_qkv=visual_qkv)
    one, two = serving_size(config), serving_size(config, devices=2)
    assert two.token == one.token // 2
    whole = sum(
        p.numel() * 2
        for name, p in tiny(llm, visual_qkv=visual_qkv).named_parameters()
        if "vision_tower" in name
        or "multi_modal_projector" in name
        or "norm" in name
        or "o_proj.bias" in name
    )
    assert two.weights == whole + (one.weights - whole) // 2


def test_devices_that_heads_cannot_be_dealt_to_are_an_error_that_says_which_can():
    with pytest.raises(ValueError, match=r"8 devices cannot share 28 heads and 4 KV heads: .* \[1, 2, 4\]"):
        serving_size(serving_config("llava15-llavit-qwen2.5-7b"), devices=8)
    with pytest.raises(ValueError, match="int8 weights are served by one device, got 2"):
        serving_size(config_of("llama"), "int8", devices=2)
    with pytest.raises(ValueError, match="2 devices cannot share the visual QKV of a phi3"):
        serving_size(config_of("phi3"), devices=2)


def test_chats_fill_the_room_that_weights_and_reserve_leave_in_whole_blocks():
    size = ServingSize({}, weights=1000, token=10, visual_tokens=9, devices=1)
    assert size.chat(7) == BLOCK * 10 and size.chat(8) == 2 * BLOCK * 10
    assert size.chat(7, images=0) == BLOCK * 10 and size.chat(0, images=4) == 3 * BLOCK * 10
    assert size.chats(1000 + 200 + 3 * 160, 7, share=1, reserve=200) == 3
    assert size.chats(1000 + 200 + 3 * 160 - 1, 7, share=1, reserve=200) == 2
    assert size.chats(1000, 7, share=0.9, reserve=200) == 0


def test_the_command_takes_models_and_recipes(tmp_path):
    config_of("llama").save_pretrained(tmp_path / "mine")
    shown = run("--serving", tmp_path / "mine", "starter", "--gpus", "2", "--memory", "10", "--markdown")
    assert shown.exit_code == 0, shown.stderr
    assert "| mine | " in shown.stdout and "| starter | 22.1 M | 1.0 M | 16.6 M |" in shown.stdout
    assert "| model | 1 x 10 GB | 2 x 10 GB |" in shown.stdout
    shown = run("--serving", "starter", "--dtype", "float32")
    assert shown.exit_code == 0 and "45.0 KiB" in shown.stdout and "1 x 80 GB" in shown.stdout
    shown = run("--serving", "starter", "--memory", "1")
    assert "too large" in shown.stdout


def test_folders_of_one_name_are_two_rows(tmp_path):
    folders = [tmp_path / run / "llava-1.5-7b" for run in ("a", "b")]
    for folder, llm in zip(folders, ("llama", "smollm3"), strict=True):
        config_of(llm).save_pretrained(folder)
    alone = run("--serving", folders[0], "--markdown")
    assert "| llava-1.5-7b |" in alone.stdout
    both = run("--serving", *folders, "--markdown")
    assert all(both.stdout.count(f"| {folder} |") == 2 for folder in folders)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--serving", "absent"], "no such recipe file: absent"),
        (["--serving", "MODEL", "--set", "seed=1"], "--set changes recipes, and MODEL is a model"),
        (["--serving", "LLM"], "expected a model of type llavit or llava, got 'llama'"),
        (["starter", "demo"], "expected one recipe, got 2; several are for --serving"),
    ],
)
def test_what_cannot_be_estimated_is_an_error_with_what_to_do(arguments, message, tmp_path):
    config_of("llama").save_pretrained(tmp_path / "mine")
    config_of("llama").text_config.save_pretrained(tmp_path / "llm")
    names = {"MODEL": str(tmp_path / "mine"), "LLM": str(tmp_path / "llm")}
    shown = run(*(names.get(word, word) for word in arguments))
    assert shown.exit_code == 2
    assert message.replace("MODEL", names["MODEL"]) in shown.stderr


def test_the_tables_in_the_documentation_are_what_the_commands_in_it_print():
    text = DOC.read_text(encoding="utf-8")
    commands = [
        line for line in text.splitlines() if line.startswith("llavit estimate ") and "--markdown" in line
    ]
    assert len(commands) == 2
    for command in commands:
        shown = run(*command.removeprefix("llavit estimate ").split())
        assert shown.exit_code == 0, shown.stderr
        assert shown.stdout in text


def run(*arguments):
    return CliRunner().invoke(app, ["estimate", *map(str, arguments)])
