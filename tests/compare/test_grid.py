"""Grids: strict, and cells in the order that is asked for."""

import pytest

from llavit.compare.cells import Cell, candidates_of, cells_of, chosen_cells
from llavit.compare.grid import GRIDS, load_grid
from llavit.compare.scoring import tasks_of
from llavit.compare.variants import SHIPPED, cell_recipe, changes_of, variant_of
from llavit.model.families import FAMILIES
from llavit.train.flops import meta_model
from llavit.train.model_config import model_config
from llavit.train.parts import parameters_by_part
from tests.tiny import HEAD_DIM

from .parts import GRID, experiment, save_grid


@pytest.fixture(scope="module")
def grid_file(tiny, tmp_path_factory):
    return save_grid(tiny, tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def grid(grid_file):
    return load_grid(grid_file)


@pytest.mark.parametrize("name", [path.stem for path in GRIDS.glob("*.yaml")])
def test_a_shipped_grid_is_valid_and_its_cells_have_recipes(name, tmp_path):
    grid = load_grid(name)
    assert grid.name == name and grid.about
    for cell in cells_of(grid):
        if variant_of(grid, cell.variant).best_of or "matched" in str(changes_of(grid, cell.variant)):
            continue  # has none of its own, or needs the LLM's folder
        folder = tmp_path if grid.llms[cell.llm].scratch else None
        recipe = cell_recipe(
            grid, cell.variant, cell.llm, cell.size, cell.seed, data=tmp_path, llm_folder=folder
        )
        assert recipe.seed == cell.seed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("seed: 3\n", "seed: unknown key, did you mean `set`"),
        ("baselines: [lava]\n", "there is no variant 'lava', did you mean `llava`"),
        ("variants: {a: {extends: b}}\n", "there is no variant 'b'"),
        ("variants: {a: {extends: b}, b: {extends: a}}\n", "variant a extends itself: a extends b extends a"),
        ("variants: {a: {set: [model.visual_qkv]}}\n", "variants.a: set: expected KEY=VALUE"),
        ("variants: {a.b: {}}\n", "expected letters, digits"),
        ("variants: {a: {best_of: [llava], set: [seed=1]}}\n", "best_of stands alone"),
        ("variants: {a: {best_of: [llava-best-layer]}}\n", "is the best of others"),
        ("choice: {size: half}\n", "choice.size: there is no 'half'"),
        (
            "against: [{variant: llavit, llm: tiny, baseline: llava, baseline_llm: big}]\n",
            "there is no 'big'",
        ),
        ("corpus: {pretrain: 1, instruct: 1, val: 1, full: true, brief: true}\n", "leave out test, kinds"),
        ("about: [x]\n", "about: expected a text"),
        ("variants: {a: {set: [seed=3]}}\n", "expected no seed, as each cell sets its own, got 'seed=3'"),
        ("corpus: {pretrain: 1, instruct: 1, val: 1, edition: full}\n", "say full: true"),
    ],
)
def test_what_is_wrong_in_a_grid_is_named(tiny, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        load_grid(save_grid(tiny, tmp_path, more))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("points: 2", "points: 0", "points: expected more than 0"),
        ("[llava, llavit]", "[llava, llavitt]", "there is no variant 'llavitt'"),
        ("seeds: [0, 1]", "seeds: [0, 1], llms: [big]", r"cells\[0\].llms: there is no 'big'"),
        ("several: [1, 2]", "several: [1]", "expected at least two layers"),
        ("candidates: [1, 2]", "candidates: []", "expected layers.candidates"),
        ("set: [stages", "set: [feature_cache=null, stages", "expected no feature_cache, as each cell"),
        ("tiny: {{set:", "tiny: {{scratch: {{}}, set:", "expected model.llm in set, or scratch, got both"),
    ],
)
def test_a_wrong_value_is_named(tiny, tmp_path, old, new, message):
    text = GRID.replace(old, new)
    assert text != GRID
    with pytest.raises(ValueError, match=message):
        load_grid(save_grid(tiny, tmp_path, "baselines: [llava-best-layer]\n", text))


def test_an_unknown_grid_suggests_the_nearest():
    with pytest.raises(FileNotFoundError, match="did you mean `tiny`"):
        load_grid("tinny")


def test_cells_run_block_by_block_and_seed_by_seed_each_once(tiny, tmp_path):
    blocks = """
  - {variants: [visual-qkv], seeds: [0]}
  - {variants: [llava, visual-qkv], seeds: [0, 2], sizes: [full, short]}
"""
    grid = load_grid(save_grid(tiny, tmp_path, blocks.lstrip("\n")))
    assert [f"{c.variant} {c.size} {c.seed}" for c in cells_of(grid)] == [
        "llava full 0",
        "llavit full 0",
        "llava full 1",
        "llavit full 1",
        "visual-qkv full 0",
        "llava short 0",
        "visual-qkv short 0",
        "llava full 2",
        "visual-qkv full 2",
        "llava short 2",
        "visual-qkv short 2",
    ]


def test_a_choice_comes_after_its_candidates_which_are_scored_on_val_only(tiny, tmp_path):
    more = "  - {variants: [llava-best-layer], seeds: [5]}\nchoice: {seed: 3, size: short}\n"
    grid = load_grid(save_grid(tiny, tmp_path, more))
    last = cells_of(grid)[-4:]
    assert [(c.name, c.test) for c in last] == [
        ("tiny.short.llava.3", False),
        ("tiny.short.llava-layer-1.3", False),
        ("tiny.short.llava-layer-2.3", False),
        ("tiny.full.llava-best-layer.5", True),
    ]
    assert candidates_of(grid, last[-1]) == last[:3]


def test_candidates_may_count_from_the_last_layer(tiny, tmp_path):
    text = GRID.replace("candidates: [1, 2]", "candidates: [-3, 1]").replace(
        "llava, llavit", "llava-best-layer"
    )
    grid = load_grid(save_grid(tiny, tmp_path, grid=text))
    candidates = candidates_of(grid, cells_of(grid)[-1])
    assert [cell.variant for cell in candidates] == ["llava", "llava-layer--3", "llava-layer-1"]
    assert [recipe_of(grid, cell.variant).model.vision_feature_layer for cell in candidates] == [-2, -3, 1]
    assert [cell.name for cell in chosen_cells(cells_of(grid), ["llava-layer--3"])] == [candidates[1].name]


def test_cells_are_chosen_by_name_part_or_pattern(grid):
    cells = cells_of(grid)
    assert [c.name for c in chosen_cells(cells, ["tiny.full.llava.1"])] == ["tiny.full.llava.1"]
    assert {c.variant for c in chosen_cells(cells, ["llava"])} == {"llava"}
    assert {c.seed for c in chosen_cells(cells, ["*.1"])} == {1}
    assert chosen_cells(cells, []) == cells
    with pytest.raises(ValueError, match=r"--only big: no such cell; there are tiny\.full"):
        chosen_cells(cells, ["big"])


# Variants


def recipe_of(grid, variant, seed=0):
    return cell_recipe(grid, variant, "tiny", "full", seed, data=None, llm_folder=None)


@pytest.mark.parametrize(
    ("variant", "visual_qkv", "both_ways", "layers"),
    [
        ("llava", False, False, -2),
        ("visual-qkv", True, False, -2),
        ("bidirectional", False, True, -2),
        ("local-global", False, False, (1, 2)),
        ("visual-qkv+bidirectional", True, True, -2),
        ("visual-qkv+local-global", True, False, (1, 2)),
        ("bidirectional+local-global", False, True, (1, 2)),
        ("llavit", True, True, (1, 2)),
        ("llava-layer-1", False, False, 1),
        ("llava-layer--3", False, False, -3),
    ],
)
def test_a_variant_differs_from_the_base_in_its_switches_only(grid, variant, visual_qkv, both_ways, layers):
    from dataclasses import replace

    made, llava = recipe_of(grid, variant, 4), recipe_of(grid, "llava", 4)
    assert (made.model.visual_qkv, made.model.bidirectional_visual_attention) == (visual_qkv, both_ways)
    assert made.model.vision_feature_layer == layers
    switches = ("visual_qkv", "bidirectional_visual_attention", "vision_feature_layer")
    alike = {name: getattr(llava.model, name) for name in switches}
    assert replace(made, name="", model=replace(made.model, **alike)) == replace(llava, name="")
    assert made.seed == 4


def test_controls_change_what_they_say(grid):
    random = recipe_of(grid, "llavit-random-qkv").model
    assert random.visual_qkv_start == "random" and random.visual_qkv
    text = recipe_of(grid, "llava-text-qkv").stages
    assert text[0].learning_rates.text_qkv == text[0].learning_rates.visual_qkv > 0
    assert text[1].learning_rates.text_qkv is None
    rates = [stage.learning_rates.visual_qkv for stage in recipe_of(grid, "llavit-qkv-pretrain-only").stages]
    assert rates[0] > 0 == rates[1]
    rates = [stage.learning_rates.visual_qkv for stage in recipe_of(grid, "llavit-qkv-instruct-only").stages]
    assert rates[1] > 0 == rates[0]
    assert recipe_of(grid, "llavit-early-late").model.vision_feature_layer == (1, 2)


def test_the_starter_grid_has_a_llava_whose_qkv_learn_as_fast_as_visual_ones(tmp_path):
    made = cell_recipe(
        load_grid("starter"), "llava-text-qkv-fast", "smollm2", "full", 0, data=tmp_path, llm_folder=None
    )
    assert not made.model.visual_qkv
    for stage in made.stages:
        assert stage.learning_rates.text_qkv == stage.learning_rates.visual_qkv > stage.learning_rates.llm


def count(recipe, part):
    model = meta_model(model_config(recipe.model))
    return sum(parameter.numel() for parameter in parameters_by_part(model)[part].values())


def test_parameter_matched_controls_have_as_many_parameters_as_visual_qkv(grid):
    extra = count(recipe_of(grid, "visual-qkv"), "visual_qkv")
    wide, llava = recipe_of(grid, "llava-wide-projector"), recipe_of(grid, "llava")
    assert count(wide, "projector") - count(llava, "projector") == pytest.approx(extra, rel=0.02)
    stage = recipe_of(grid, "llava-extra-lora").stages[0]
    assert stage.lora is not None and stage.lora.alpha == 2 * stage.lora.rank
    # 2 layers of width 32, 4 heads, 2 of keys, 64 inside
    queries, keys = 4 * HEAD_DIM, 2 * HEAD_DIM
    rank_1 = 2 * ((32 + queries) + 2 * (32 + keys) + (queries + 32) + 3 * (32 + 64))
    assert stage.lora.rank * rank_1 == pytest.approx(extra, abs=rank_1 / 2)


def test_every_shipped_variant_says_what_it_is():
    assert all(variant.about for variant in SHIPPED.values())
    assert FAMILIES  # the LLMs for which matched sizes can be counted


def test_a_change_with_an_unknown_name_says_which_there_are(tiny, tmp_path):
    more = "variants: {odd: {set: [model.vision_feature_layer=$layers]}}\n"
    grid = load_grid(save_grid(tiny, tmp_path, more))
    with pytest.raises(ValueError, match=r"vision_feature_layer=\$layers.*known: \$single, \$several"):
        recipe_of(grid, "odd")


def test_the_file_of_a_cell_is_named_by_it(grid_file, tmp_path):
    there = experiment(grid_file, tmp_path)
    assert there.results.path(Cell("llavit", "tiny", "full", 1)) == (
        tmp_path / "results/cells/tiny.full.llavit.1.json"
    )


def test_tasks_are_not_asked_for_in_vain(tiny, tmp_path):
    path = save_grid(tiny, tmp_path, grid=GRID.replace("points: 2", "points: 2, tasks: colour"))
    with pytest.raises(ValueError, match=r"evaluation\.tasks: .*got 'colour' and files only: .*test\.json"):
        tasks_of(load_grid(path).evaluation, "test")


def test_a_size_may_give_an_llm_steps_of_its_own(tiny, tmp_path):
    path = save_grid(tiny, tmp_path)
    llm = next(iter(load_grid(path).llms))
    text = path.read_text()
    changed = text.replace("  short: {", f"  short: {{llms: {{{llm}: [stages.0.steps=7]}}, ", 1)
    assert changed != text
    path.write_text(changed)
    recipe = cell_recipe(load_grid(path), "llava", llm, "short", 0, data=None, llm_folder=None)
    assert recipe.stages[0].steps == 7
    path.write_text(changed.replace(f"{{{llm}:", "{nobody:"))
    with pytest.raises(ValueError, match=r"sizes.short.llms: there is no 'nobody'"):
        load_grid(path)
