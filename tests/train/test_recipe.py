from dataclasses import replace

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from llavit.train.recipe import load_recipe, shipped_recipes
from llavit.train.schema import parse_yaml

PLAIN = """
name: try
model: {vision: v, llm: l, vision_feature_layer: [4, 8, -2]}
stages:
  - name: pretrain
    data: {path: d.json}
    learning_rates: {projector: 1e-3}
    batch_size: 8
  - name: instruct
    data: {path: d.json}
    learning_rates: {projector: 2e-5, llm: 2e-5}
    batch_size: 8
    micro_batch_size: 2
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "try.yaml"
    path.write_text(PLAIN)
    return path


def test_a_recipe_is_typed_and_the_rest_has_defaults(recipe_file):
    recipe = load_recipe(recipe_file)
    assert recipe.model.vision_feature_layer == (4, 8, -2)
    assert recipe.stages[0].learning_rates.projector == 1e-3
    assert recipe.stages[0].learning_rates.llm == 0
    assert [stage.micro for stage in recipe.stages] == [8, 2]
    assert load_recipe(recipe_file, ["stages.0.micro_batch_size=32"]).stages[0].micro == 8
    assert recipe.folder.as_posix() == "runs/try"


def test_the_resolved_recipe_reads_back_equal(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file, ["stages.1.steps=7"])
    again = tmp_path / "resolved.yaml"
    again.write_text(recipe.to_yaml())
    assert load_recipe(again) == recipe
    assert "warmup_ratio: 0.03" in recipe.to_yaml()


def test_an_unknown_key_names_the_nearest_one_and_the_file(recipe_file):
    recipe_file.write_text(PLAIN.replace("batch_size: 8", "batchsize: 8"))
    with pytest.raises(
        ValueError, match=r"try.yaml: stages\[0\].batchsize: unknown key, did you mean `batch_size`"
    ):
        load_recipe(recipe_file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.batch_size=four", r"stages\[0\].batch_size: expected a whole number, got 'four' \(str\)"),
        ("stages.0.batch_size=2.5", r"stages\[0\].batch_size: expected a whole number, got 2.5 \(float\)"),
        ("stages.0.batch_size=true", r"stages\[0\].batch_size: expected a whole number, got True \(bool\)"),
        ("stages.0.epochs=many", r"stages\[0\].epochs: expected a number, got 'many'"),
        ("stages.0.name=", r"stages\[0\].name: expected a text, got nothing"),
        ("stages.0.schedule=cosin", r"stages\[0\].schedule: expected one of cosine, linear, .* got 'cosin'"),
        ("model.visual_qkv=1", r"model.visual_qkv: expected true or false, got 1 \(int\)"),
        (
            "model.vision_feature_layer=last",
            "model.vision_feature_layer: expected a whole number or a list of",
        ),
        (
            "model.vision_feature_layer=[1, two]",
            r"vision_feature_layer\[1\]: expected a whole number, got 'two'",
        ),
        ("stages=3", r"stages: expected a list of .*, got 3 \(int\)"),
        ("stages.0.data=d.json", r"stages\[0\].data: expected keys and values, got 'd.json'"),
    ],
)
def test_a_wrong_type_says_what_was_expected_and_got(recipe_file, override, message):
    with pytest.raises(ValueError, match=message) as error:
        load_recipe(recipe_file, [override])
    assert f"--set {override}" in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.batch_size=0", r"stages\[0\]: batch_size: expected more than 0, got 0"),
        ("stages.0.name=tensorboard", "name: 'tensorboard' is the name of another folder or file of a run"),
        (
            "stages.0.name=pretrain.work",
            "name: 'pretrain.work' is the name of another folder or file of a run",
        ),
        ("stages.0.micro_batch_size=3", "batch_size 8 is not a multiple of micro_batch_size 3"),
        ("stages.0.warmup_ratio=1.0", "warmup_ratio: expected 0 <= ratio < 1, got 1.0"),
        (
            "stages.0.schedule=constant",
            "constant has no warm-up, and warmup_ratio is 0.03; set it to 0, or schedule",
        ),
        ("stages.0.learning_rates.projector=0", "every part is frozen"),
        ("stages.0.learning_rates.projector=-1e-3", "projector: expected 0 or more, got -0.001"),
        (
            "stages.1={name: x, data: {path: x}, batch_size: 1, lora: {}, learning_rates: {llm: 1, text_qkv: 1}}",
            "adapters train in place of text QKV",
        ),
        ("model.projector_width=0", "projector_width: expected more than 0"),
        ("stages.1.name=pretrain", "expected a different name for each, got pretrain, pretrain"),
        ("stages.1.name=a/b", "name: expected the name of a folder, got 'a/b'"),
        ("stages=[]", "stages: expected at least one"),
        ("model.vision=null", "model: expected `vision` and `llm`, or `checkpoint`"),
        (
            "model.checkpoint=folder",
            "checkpoint stands alone: its config decides vision, llm, vision_feature_layer",
        ),
        ("stages.0.data={limit: 3}", r"stages\[0\].data: path: missing, expected `path`, or `mixture`"),
    ],
)
def test_a_value_that_makes_no_sense_is_an_error(recipe_file, override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file, [override])


def test_overrides_count_or_name_the_stage_and_are_read_as_yaml(recipe_file):
    overrides = [
        "seed=3",
        "stages.0.steps=5",
        "stages.instruct.learning_rates.visual_qkv=2e-4",
        "stages.instruct.data={path: other.jsonl, limit: 10}",
        "model.vision_feature_layer=-2",
    ]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.seed == 3
    assert recipe.stages[0].steps == 5
    assert recipe.stages[1].learning_rates.visual_qkv == 2e-4
    assert (recipe.stages[1].data.path, recipe.stages[1].data.limit) == ("other.jsonl", 10)
    assert recipe.model.vision_feature_layer == -2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "expected KEY=VALUE"),
        ("stages.2.steps=1", "stages has no '2'"),
        ("stages.instuct.steps=1", "stages has no 'instuct', did you mean `instruct`"),
        ("name.first=1", "name is a single value, it has no 'first'"),
        ("seed=[", "--set seed=.*not valid YAML"),
    ],
)
def test_an_override_that_leads_nowhere_says_where(recipe_file, override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file, [override])


def test_numbers_with_an_exponent_are_numbers():
    values = parse_yaml("[1e-3, 1.5E3, -2e5, 1e+2, '1e3', e5]", "x")
    assert values == [0.001, 1500.0, -200000.0, 100.0, "1e3", "e5"]


def test_broken_yaml_and_keys_given_twice_name_the_line(recipe_file):
    recipe_file.write_text("name: a\nname: b\n")
    with pytest.raises(ValueError, match=r"try.yaml, line 2, column 1: .*'name' is given twice"):
        load_recipe(recipe_file)
    recipe_file.write_text("name: [\n")
    with pytest.raises(ValueError, match=r"try.yaml, line 2, column 1: not valid YAML"):
        load_recipe(recipe_file)


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(FileNotFoundError, match="no such recipe file: startr; did you mean starter"):
        load_recipe("startr")


# extends


def write(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_a_recipe_that_extends_another_says_only_what_differs(recipe_file, tmp_path):
    child = """
extends: ../try.yaml
name: child
model: {llm: other, vision_feature_layer: [1, 2]}
stages:
  - {name: instruct, learning_rates: {llm: 1e-5}, epochs: 2}
  - {name: polish, data: {path: p.json}, learning_rates: {llm: 1e-6}, batch_size: 4}
"""
    recipe, parent = load_recipe(write(tmp_path, "sub/child.yaml", child)), load_recipe(recipe_file)
    assert (recipe.name, recipe.model.vision, recipe.model.llm) == ("child", "v", "other")
    assert recipe.model.vision_feature_layer == (1, 2)  # a list replaces the one before
    assert [stage.name for stage in recipe.stages] == ["pretrain", "instruct", "polish"]
    assert recipe.stages[0] == parent.stages[0]
    instruct = recipe.stages[1]
    assert (instruct.learning_rates.projector, instruct.learning_rates.llm) == (2e-5, 1e-5)
    assert (instruct.batch_size, instruct.epochs) == (8, 2)
    again = write(tmp_path, "resolved.yaml", recipe.to_yaml())
    assert load_recipe(again) == recipe and "extends" not in again.read_text()


def test_extends_goes_over_several_files_and_shipped_names_and_before_overrides(tmp_path):
    write(tmp_path, "a.yaml", "extends: llava15-llavit\nname: a\nstages: [{name: pretrain, batch_size: 64}]")
    child = write(tmp_path, "b.yaml", "extends: a.yaml\nstages: [{name: pretrain, micro_batch_size: 2}]")
    stage = load_recipe(child).stages[0]
    assert (stage.batch_size, stage.micro_batch_size, stage.max_length) == (64, 2, 2048)
    assert load_recipe(child, ["stages.pretrain.batch_size=32"]).stages[0].batch_size == 32


@pytest.mark.parametrize(
    ("parent", "child", "error", "message"),
    [
        (PLAIN, "seeed: 1", ValueError, r"child.yaml: seeed: unknown key, did you mean `seed`"),
        (PLAIN + "    batchsize: 2", "seed: 1", ValueError, r"^try.yaml: stages\[1\].batchsize: unknown key"),
        (PLAIN, "seed: one", ValueError, r"child.yaml: seed: expected a whole number, got 'one'"),
        (PLAIN + "seed: x", "name: c", ValueError, r"^try.yaml: seed: expected a"),
        (PLAIN, "stages: [{epochs: 2}]", ValueError, r"child.yaml: stages\[0\].name: missing"),
        (
            PLAIN,
            "stages: [{name: new}]",
            ValueError,
            r"child.yaml \(extends try.yaml\): stages\[2\].data: missing",
        ),
        (
            PLAIN,
            "stages: [{name: pretrain, micro_batch_size: 3}]",
            ValueError,
            r"child.yaml \(extends try.yaml\): stages\[0\]: batch_size 8 is not a multiple",
        ),
        (None, "seed: 1", FileNotFoundError, r"child.yaml: extends: no such recipe file: try.yaml"),
        ("extends: child.yaml", "seed: 1", ValueError, r"child.yaml extends try.yaml extends child.yaml"),
        (PLAIN, "extends: [a, b]", ValueError, r"expected the path or name of one recipe, got \['a', 'b'\]"),
    ],
)
def test_an_error_names_the_file_that_it_comes_from(tmp_path, parent, child, error, message):
    if parent is not None:
        write(tmp_path, "try.yaml", parent)
    extends = "" if child.startswith("extends") else "extends: try.yaml\n"
    with pytest.raises(error, match=message):
        load_recipe(write(tmp_path, "child.yaml", extends + child))


# The recipes that come with the package

SHIPPED = [recipe.name for recipe in shipped_recipes()]
LLAVA15 = [name for name in SHIPPED if name.startswith("llava15-")]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_valid_and_says_in_one_line_what_it_is_for(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    about = next(shipped.about for shipped in shipped_recipes() if shipped.name == name)
    assert 20 < len(about) < 140
    assert load_recipe(name, ["seed=1"]) == replace(recipe, seed=1)


@pytest.mark.parametrize("variant", ["llavit", "llava"])
def test_each_llm_has_a_recipe_with_clip_and_what_is_our_choice_is_marked(variant):
    llms = {
        "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
        "": "Qwen/Qwen2.5-1.5B-Instruct",
        "qwen2.5-3b": "Qwen/Qwen2.5-3B-Instruct",
        "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
        "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
        "phi-3.5-mini": "microsoft/Phi-3.5-mini-instruct",
        "vicuna-7b": "lmsys/vicuna-7b-v1.5",
        "vicuna-13b": "lmsys/vicuna-13b-v1.5",
    }
    for name, llm in llms.items():
        model = load_recipe(f"llava15-{variant}-{name}".rstrip("-")).model
        assert (model.llm, model.vision) == (llm, "openai/clip-vit-large-patch14-336")
    text = next(recipe.path for recipe in shipped_recipes() if recipe.name == "llava15-llavit").read_text()
    for line in text.splitlines():
        # What LLaVA-1.5 has no word on: the layers that are read, and how fast the visual QKV learn.
        if line.strip().startswith(("vision_feature_layer:", "visual_qkv: 2e-", "llm: Qwen")):
            assert "our choice" in line


@pytest.mark.parametrize("name", LLAVA15)
def test_llava15_recipes_have_the_hyperparameters_of_llava15(name):
    pretrain, instruct = load_recipe(name).stages
    lora = name.endswith("-lora")
    assert (pretrain.name, instruct.name) == ("pretrain", "instruct")
    assert (pretrain.batch_size, instruct.batch_size) == (256, 128)
    assert (pretrain.learning_rates.projector, instruct.learning_rates.projector) == (1e-3, 2e-5)
    assert (pretrain.learning_rates.llm, instruct.learning_rates.llm) == (0, 2e-4 if lora else 2e-5)
    for stage in (pretrain, instruct):
        assert stage.learning_rates.vision_tower == 0
        assert (stage.schedule, stage.warmup_ratio, stage.epochs, stage.steps) == ("cosine", 0.03, 1, None)
        assert (stage.weight_decay, stage.max_length, stage.max_grad_norm) == (0, 2048, 1.0)
    assert (pretrain.style, instruct.style) == ("plain", "chat")
    assert (pretrain.image_aspect_ratio, instruct.image_aspect_ratio) == (None, "pad")
    assert (instruct.lora is not None) == lora
    if instruct.lora is not None:
        assert (instruct.lora.rank, instruct.lora.alpha) == (128, 256)


@pytest.mark.parametrize("name", [name for name in LLAVA15 if name.startswith("llava15-llavit")])
def test_a_baseline_differs_from_its_llavit_in_the_three_switches_and_the_name_only(name):
    llavit, llava = load_recipe(name), load_recipe(name.replace("llava15-llavit", "llava15-llava"))
    assert llavit.model.visual_qkv and llavit.model.bidirectional_visual_attention
    assert llavit.model.vision_feature_layer == (8, 16, -2)
    switched_off = replace(
        llavit.model, visual_qkv=False, bidirectional_visual_attention=False, vision_feature_layer=-2
    )
    assert llava == replace(llavit, name=llava.name, model=switched_off)


def test_vicunas_template_is_llavas_conversation_v1():
    template = load_recipe("llava15-llavit-vicuna-7b").model.chat_template
    turns = [("user", "<image>\nWhat?"), ("assistant", "A cat."), ("user", "Sure?"), ("assistant", "Yes.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    (text,), _ = render_jinja_template([messages], chat_template=template, eos_token="</s>")
    assert text == f"{system} USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT: Yes.</s>"
    (text,), _ = render_jinja_template(
        [messages[:1]], chat_template=template, eos_token="</s>", add_generation_prompt=True
    )
    assert text == f"{system} USER: <image>\nWhat? ASSISTANT:"


@pytest.mark.parametrize("parallel", ["fsdp2", "zero3"])
def test_layers_in_four_bits_are_not_cut_up(tiny, parallel):
    qlora = "stages.1.lora={rank: 4, quantize: nf4}"
    tiny.recipe(qlora, "parallel=zero2")
    with pytest.raises(
        ValueError, match=rf"stage instruct: .*expected `parallel: ddp` or zero2, got {parallel}"
    ):
        tiny.recipe(qlora, f"parallel={parallel}")
