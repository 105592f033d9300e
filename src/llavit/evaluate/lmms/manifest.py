"""The entry point `lmms_eval.models`: tells lmms-eval of the model `llavit`, without importing what it needs to run."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Return lmms-eval's `ModelManifest` of the model `llavit`, which has a chat interface only."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="llavit", chat_class_path="llavit.evaluate.lmms.plugin.LlavitLmms")
