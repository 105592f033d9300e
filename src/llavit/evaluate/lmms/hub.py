"""Whether data sets can be had: on this machine already, or from the hub."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path


def hub_reachable(timeout: float = 5.0) -> bool:
    """Whether the hub (`HF_ENDPOINT`, or Hugging Face's) answers; False where `HF_HUB_OFFLINE` is set.

    Args:
        timeout: seconds to wait.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500  # it answers, if only to say that HEAD is not for its front page
    except (OSError, ValueError):
        return False


def on_this_machine(dataset: str) -> bool:
    """Whether `datasets` has prepared a data set of the hub here before, and can load it without the hub.

    Args:
        dataset: its id on the hub.
    """
    from datasets.load import CachedDatasetModuleFactory

    try:
        CachedDatasetModuleFactory(dataset, cache_dir=str(_cache())).get_module()
    except FileNotFoundError:
        return False
    return True


def _cache() -> Path:
    """Where lmms-eval has `datasets` keep what it prepares."""
    own = os.environ.get("LMMS_EVAL_DATASETS_CACHE", "").strip()
    if own:
        return Path(os.path.expandvars(own)).expanduser()
    from datasets import config

    return Path(config.HF_DATASETS_CACHE)
