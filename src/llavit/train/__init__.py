"""Training: recipes, stages and the trainer."""

from typing import Any

from llavit.train.recipe import Recipe, load_recipe, shipped_recipes

__all__ = ["Recipe", "load_recipe", "shipped_recipes", "train"]


def __getattr__(name: str) -> Any:
    """Import `train` when it is first asked for: it needs torch, the recipes do not."""
    if name == "train":
        from llavit.train.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
