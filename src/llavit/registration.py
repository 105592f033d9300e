"""transformers' Auto classes know LLaViT after `import llavit`, which itself imports neither transformers nor torch.

`AutoModel.register` and its like take classes, and a class of ours needs modelling code of transformers': seconds of
imports, also for `llavit --help`. transformers has the same problem with its own models and lists them by name; so do
we. As soon as somebody imports one of its tables of names, our line is added, and the class is imported when it is
asked for. Where the tables are there already, the classes are registered in the ordinary way: the time is spent anyway.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MODEL_TYPE = "llavit"

_AUTO = "transformers.models.auto"
TABLES = {
    f"{_AUTO}.configuration_auto": {"CONFIG_MAPPING_NAMES": "LlavitConfig"},
    f"{_AUTO}.modeling_auto": {
        "MODEL_MAPPING_NAMES": "LlavitModel",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "LlavitForConditionalGeneration",
    },
    f"{_AUTO}.processing_auto": {"PROCESSOR_MAPPING_NAMES": "LlavitProcessor"},
}
"""By module: its tables of names, and our class in each."""


def register(package: ModuleType) -> None:
    """Make transformers' Auto classes find LLaViT's classes; may be called again.

    Args:
        package: where the classes are, `llavit`. transformers looks for it as one of its own models.

    Example:
        >>> import llavit
        >>> register(llavit)
        >>> from transformers import AutoConfig
        >>> AutoConfig.for_model("llavit").model_type
        'llavit'
    """
    sys.modules[f"transformers.models.{MODEL_TYPE}"] = package
    if any(name in sys.modules for name in TABLES):
        _register_classes(package)
    elif not any(isinstance(finder, _Tables) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Tables())


class _Tables(MetaPathFinder):
    """Adds our lines to transformers' tables right after the module that holds them has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in TABLES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            for table, name in TABLES[fullname].items():
                getattr(module, table)[MODEL_TYPE] = name

        loader.exec_module = exec_module
        return spec


def _register_classes(package: ModuleType) -> None:
    auto: Any = importlib.import_module("transformers")
    config = package.LlavitConfig
    auto.AutoConfig.register(MODEL_TYPE, config, exist_ok=True)
    auto.AutoModel.register(config, package.LlavitModel, exist_ok=True)
    auto.AutoModelForImageTextToText.register(config, package.LlavitForConditionalGeneration, exist_ok=True)
    auto.AutoProcessor.register(config, package.LlavitProcessor, exist_ok=True)
