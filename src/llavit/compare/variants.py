"""The variants that come with llavit, and how a cell's recipe is made.

In a change, `$name` stands for:

    $data                   folder of the corpus that the grid builds
    $single, $several       the grid's tower layers; $early_late is the first and the last of several
    $visual_qkv_rate        first stage's learning rate of visual QKV in the base recipe
    $matched_width          width of a projector that has as many parameters as LLaVA's and visual QKV together
    $matched_rank           rank of adapters that have as many parameters as visual QKV; $twice_matched_rank
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from llavit.compare.grid import Grid, Llm, Variant
from llavit.compare.matching import matched_rank, matched_width
from llavit.train.recipe import Recipe, load_recipe
from llavit.train.schema import suggest

_OFF = ("model.visual_qkv=false", "model.bidirectional_visual_attention=false")
_SINGLE, _SEVERAL = "model.vision_feature_layer=$single", "model.vision_feature_layer=$several"
_QKV, _BOTH_WAYS = "model.visual_qkv=true", "model.bidirectional_visual_attention=true"

SHIPPED: dict[str, Variant] = {
    "llava": Variant("all switches off, one tower layer", set=(*_OFF, _SINGLE)),
    "visual-qkv": Variant("LLaVA + separate QKV for visual tokens", "llava", (_QKV,)),
    "bidirectional": Variant(
        "LLaVA + visual tokens of an image see each other both ways", "llava", (_BOTH_WAYS,)
    ),
    "local-global": Variant("LLaVA + several tower layers", "llava", (_SEVERAL,)),
    "visual-qkv+bidirectional": Variant("LLaViT with one tower layer", "llava", (_QKV, _BOTH_WAYS)),
    "visual-qkv+local-global": Variant("LLaViT without attention both ways", "llava", (_QKV, _SEVERAL)),
    "bidirectional+local-global": Variant("LLaViT without visual QKV", "llava", (_BOTH_WAYS, _SEVERAL)),
    "llavit": Variant("all three changes", set=(_QKV, _BOTH_WAYS, _SEVERAL)),
    "llava-wide-projector": Variant(
        "control: LLaVA, visual QKV's number of parameters in the projector",
        "llava",
        ("model.projector_width=$matched_width",),
    ),
    "llava-extra-lora": Variant(
        "control: LLaVA, visual QKV's number of parameters in adapters that pretraining trains",
        "llava",
        (
            "stages.0.lora.rank=$matched_rank",
            "stages.0.lora.alpha=$twice_matched_rank",
            "stages.0.lora.dropout=0",
            "stages.0.learning_rates.llm=$visual_qkv_rate",
        ),
    ),
    "llava-text-qkv": Variant(
        "control: LLaVA whose text QKV train in pretraining",
        "llava",
        ("stages.0.learning_rates.text_qkv=$visual_qkv_rate",),
    ),
    "llavit-random-qkv": Variant(
        "control: LLaViT whose visual QKV start at random", "llavit", ("model.visual_qkv_start=random",)
    ),
    "llavit-early-late": Variant(
        "LLaViT with two tower layers", "llavit", ("model.vision_feature_layer=$early_late",)
    ),
    "llavit-qkv-pretrain-only": Variant(
        "LLaViT whose visual QKV are frozen after the first stage",
        "llavit",
        ("stages.1.learning_rates.visual_qkv=0",),
    ),
    "llavit-qkv-instruct-only": Variant(
        "LLaViT whose visual QKV are frozen in the first stage",
        "llavit",
        ("stages.0.learning_rates.visual_qkv=0",),
    ),
}
"""By name. `llava-layer-N` (LLaVA that reads tower layer N, also a negative one) and `llava-best-layer` (the best on
val of LLaVA's own layer and the grid's candidates) come on top."""

_LAYER = re.compile(r"llava-layer-(-?\d+)$")


def variant_of(grid: Grid, name: str) -> Variant:
    """Give a variant by name: the grid's own, or one that comes with llavit.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> from llavit.compare.grid import load_grid
        >>> variant_of(load_grid("tiny"), "llava-layer-3").set
        ('model.vision_feature_layer=3',)
    """
    if name in grid.variants:
        return grid.variants[name]
    if name in SHIPPED:
        return SHIPPED[name]
    if found := _LAYER.match(name):
        layer = int(found[1])
        return Variant(
            f"LLaVA that reads tower layer {layer}", "llava", (f"model.vision_feature_layer={layer}",)
        )
    if name == "llava-best-layer":
        if not grid.layers.candidates:
            raise ValueError("llava-best-layer: expected layers.candidates in the grid, got none")
        candidates = ("llava", *(f"llava-layer-{layer}" for layer in grid.layers.candidates))
        return Variant("LLaVA with the single tower layer that is best on val", best_of=candidates)
    known = [*grid.variants, *SHIPPED, "llava-layer-N", "llava-best-layer"]
    raise ValueError(f"there is no variant {name!r}, {suggest(name, known)}")


def changes_of(grid: Grid, name: str, family: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Give a variant's changes, those of what it extends first.

    Raises:
        ValueError: it extends itself, or one that chooses.
    """
    variant = variant_of(grid, name)
    if name in family:
        raise ValueError(f"variant {name} extends itself: {' extends '.join((*family, name))}")
    if variant.best_of:
        raise ValueError(f"variant {name} is the best of others: it has no changes of its own")
    before = changes_of(grid, variant.extends, (*family, name)) if variant.extends else ()
    return (*before, *variant.set)


def require_variants(grid: Grid, where: str) -> None:
    """Check every variant that a grid names.

    Raises:
        ValueError: an unknown one, or one that cannot be made.
    """
    named = [name for block in grid.cells for name in block.variants]
    named += [*grid.variants, *grid.baselines]
    named += [name for one in grid.against for name in (one.variant, one.baseline)]
    for name in dict.fromkeys(named):
        try:
            variant = variant_of(grid, name)
            for one in variant.best_of or (name,):
                changes_of(grid, one)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def cell_recipe(
    grid: Grid, variant: str, llm: str, size: str, seed: int, *, data: Path | None, llm_folder: Path | None
) -> Recipe:
    """Make the recipe of a cell: the base, changed by grid, LLM, size, variant and seed, in this order.

    Args:
        grid: the whole experiment.
        variant: its name; one with changes, not one that chooses.
        llm: its name.
        size: its name.
        seed: the recipe's.
        data: folder of the corpus, where the grid builds one.
        llm_folder: of a decoder that was trained from scratch.

    Raises:
        ValueError: a change leads nowhere, or names a `$name` that there is not.
    """
    spec: Llm = grid.llms[llm]
    changes = [*grid.set, *spec.set]
    if llm_folder is not None:
        changes.append(f"model.llm={llm_folder}")
    changes += grid.sizes[size].of(llm)
    values: dict[str, Any] = {
        "single": grid.layers.single,
        "several": list(grid.layers.several),
        "early_late": [grid.layers.several[0], grid.layers.several[-1]],
    }
    if data is not None:
        values["data"] = data
    base = load_recipe(grid.recipe, [_filled(change, values) for change in changes])
    rate = base.stages[0].learning_rates.visual_qkv
    values |= {"visual_qkv_rate": f"{rate:g}"}
    own = changes_of(grid, variant)
    if any("matched" in change for change in own):
        rank = matched_rank(base.model)
        width = matched_width(base.model, grid.layers.single)
        values |= {"matched_width": width, "matched_rank": rank, "twice_matched_rank": 2 * rank}
    changes = [*changes, *own, f"seed={seed}", f"name={grid.name}-{llm}-{size}-{variant}-{seed}"]
    return load_recipe(grid.recipe, [_filled(change, values) for change in changes])


def _filled(change: str, values: Mapping[str, Any]) -> str:
    try:
        return Template(change).substitute(values)
    except (KeyError, ValueError) as error:
        known = ", ".join(f"${name}" for name in values)
        raise ValueError(
            f"{change}: what stands behind $ is unknown here ({error}); known: {known}"
        ) from error
