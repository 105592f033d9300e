"""Looking inside a model: what the LLM does with visual tokens. Knows nothing of training and serving."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llavit.inspect.attention import answer_attention, answer_words
    from llavit.inspect.blocking import Block, knockout
    from llavit.inspect.drift import Drift, qkv_drift
    from llavit.inspect.inputs import one_image, read_messages
    from llavit.inspect.knockouts import Knockouts, measure_knockouts
    from llavit.inspect.lens import Lens, vocabulary_lens
    from llavit.inspect.maps import AttentionMaps, attention_maps
    from llavit.inspect.mask import Mask, attention_mask
    from llavit.inspect.naming import Naming, naming_shares
    from llavit.inspect.pca import PatchPca, patch_pca
    from llavit.inspect.probe import Probe, probe_layers, probe_pictures
    from llavit.inspect.report import Analysis, save_all, side_by_side
    from llavit.inspect.rollout import attention_rollout
    from llavit.inspect.tokens import TokenStatistics, token_statistics
    from llavit.inspect.weights import attention_weights, watch_attention

__all__ = [
    "Analysis",
    "AttentionMaps",
    "Block",
    "Drift",
    "Knockouts",
    "Lens",
    "Mask",
    "Naming",
    "PatchPca",
    "Probe",
    "TokenStatistics",
    "answer_attention",
    "answer_words",
    "attention_maps",
    "attention_mask",
    "attention_rollout",
    "attention_weights",
    "knockout",
    "measure_knockouts",
    "naming_shares",
    "one_image",
    "patch_pca",
    "probe_layers",
    "probe_pictures",
    "qkv_drift",
    "read_messages",
    "save_all",
    "side_by_side",
    "token_statistics",
    "vocabulary_lens",
    "watch_attention",
]

_HOMES = {
    "Analysis": "report",
    "answer_attention": "attention",
    "answer_words": "attention",
    "attention_maps": "maps",
    "attention_mask": "mask",
    "attention_rollout": "rollout",
    "attention_weights": "weights",
    "AttentionMaps": "maps",
    "Block": "blocking",
    "Drift": "drift",
    "knockout": "blocking",
    "Knockouts": "knockouts",
    "Lens": "lens",
    "Mask": "mask",
    "measure_knockouts": "knockouts",
    "Naming": "naming",
    "naming_shares": "naming",
    "one_image": "inputs",
    "patch_pca": "pca",
    "PatchPca": "pca",
    "Probe": "probe",
    "probe_layers": "probe",
    "probe_pictures": "probe",
    "qkv_drift": "drift",
    "read_messages": "inputs",
    "save_all": "report",
    "side_by_side": "report",
    "token_statistics": "tokens",
    "TokenStatistics": "tokens",
    "vocabulary_lens": "lens",
    "watch_attention": "weights",
}
"""The files of the public names, which are imported when they are asked for."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
