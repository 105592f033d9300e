import gc
from dataclasses import dataclass
from pathlib import Path

import pytest

from llavit import build_llavit
from llavit.compiling import why_not
from llavit.train.recipe import load_recipe
from tests.tiny import save_data, save_parts

RECIPE = """
name: tiny
dtype: float32
model: {{vision: {vision}, llm: {llm}, vision_feature_layer: [1, -2]}}
stages:
  - name: pretrain
    data: {{path: {data}}}
    learning_rates: {{projector: 1e-2, visual_qkv: 5e-3}}
    batch_size: 4
    steps: 4
    warmup_ratio: 0
  - name: instruct
    data: {{path: {data}}}
    learning_rates: {{projector: 1e-3, visual_qkv: 1e-3, llm: 1e-3}}
    batch_size: 4
    steps: 2
    warmup_ratio: 0
"""

collect_ignore = ["frozen.py", "serve/schema_parts.py"]
"""Not to be imported when modules are searched for doctests."""


def pytest_collection_finish():
    """Leave what imports made out of garbage collection: a stage of a training collects, half a second each time."""
    gc.collect()
    gc.freeze()


@dataclass
class Tiny:
    vision: Path
    llm: Path
    data: Path
    recipe_file: Path

    def recipe(self, *overrides):
        return load_recipe(self.recipe_file, overrides)

    def build(self, **switches):
        return build_llavit(self.vision, self.llm, vision_feature_layer=[1, -2], **switches)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    vision, llm = save_parts(folder)
    data = save_data(folder / "data")
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE.format(vision=vision, llm=llm, data=data))
    return Tiny(vision, llm, data, recipe)


@pytest.fixture(scope="session")
def compiler():
    """What torch.compile needs. It is tried where a test asks for it, as that takes a fresh machine half a minute."""
    if (reason := why_not()) is not None:
        pytest.skip(f"torch.compile does not work here: {reason}")
