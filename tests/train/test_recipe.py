import pytest

from llavit.train.recipe import Recipe, load_recipe, shipped_recipes
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
        ("stages.0.micro_batch_size=3", "batch_size 8 is not a multiple of micro_batch_size 3"),
        ("stages.0.warmup_ratio=1.0", "warmup_ratio: expected 0 <= ratio < 1, got 1.0"),
        ("stages.0.learning_rates.projector=0", "every part is frozen"),
        ("stages.0.learning_rates.projector=-1e-3", "projector: expected 0 or more, got -0.001"),
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


def test_every_shipped_recipe_loads_by_name_and_says_what_it_is_for():
    for shipped in shipped_recipes():
        assert isinstance(load_recipe(shipped.name), Recipe)
        assert len(shipped.about) > 20


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(FileNotFoundError, match="no such recipe file: startr; did you mean starter"):
        load_recipe("startr")
