"""Fill the feature cache before a stage with a frozen tower."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.console import Console

from llavit.data import FeatureCache, Reader, cache_key
from llavit.folders import wait_until_seen
from llavit.progress import progress_bar

BATCH = 32


def prepare_features(
    folder: str | Path,
    model: Any,
    processor: Any,
    reader: Reader,
    *,
    dtype: torch.dtype,
    device: torch.device,
    console: Console,
) -> FeatureCache:
    """Compute the features of all images of a stage that the cache does not hold yet.

    Several processes share the images; each writes a file of its own, and all return when all are done and can be seen.

    Args:
        folder: where caches are.
        model: its tower must be frozen in the stage.
        processor: prepares the images.
        reader: the stage's records.
        dtype: to compute in.
        device: to compute on; the tower is back on its own afterwards.
        console: tells how many were computed.

    Returns:
        the cache; call it with an image.

    Raises:
        FileNotFoundError: what another process wrote is not to be seen here, as the folder is not on shared storage.
    """
    config, state = model.config, PartialState()
    layers = config.vision_feature_layer
    cache = FeatureCache(
        folder,
        cache_key(
            model.model.vision_tower,
            {
                "preprocessing": json.loads(processor.image_processor.to_json_string()),
                "vision_feature_layer": layers if isinstance(layers, int) else list(layers),
                "vision_feature_select_strategy": config.vision_feature_select_strategy,
            },
            computed_in=dtype,
        ),
    )
    mine = range(state.process_index, len(reader), state.num_processes)

    def images() -> Iterator[Any]:
        for done, index in enumerate(mine):
            show(done + 1, len(mine))
            try:
                yield from reader.sample(index).images
            except (ValueError, OSError):
                continue  # the data set meets the bad record too, and deals with it as the recipe says

    def encode(pictures: list[Any]) -> torch.Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            return model.model.encode_images(processor.pixel_values(pictures))

    if cache.damaged:
        console.print(f"feature cache: {cache.damaged} damaged entries are computed again", highlight=False)
    parts = (model.model.vision_tower, model.model.multi_modal_projector)
    home = next(parts[0].parameters()).device
    try:
        for part in parts:
            part.to(device)
        alone = state.num_processes == 1
        with (
            _one_run_at_a_time(cache) if alone else nullcontext(),
            progress_bar("features of the images") as show,
        ):
            computed = cache.add(images(), encode, batch_size=BATCH)
    finally:
        for part in parts:
            part.to(home)
    state.wait_for_everyone()
    if state.num_processes > 1:
        written = dict(gather_object(list(cache.written.items())))
        wait_until_seen({cache.folder / name: size for name, size in written.items()})
        cache.refresh()
    console.print(
        f"feature cache: {computed:,} images computed, {len(cache):,} in {cache.folder}",
        highlight=False,
        soft_wrap=True,
    )
    return cache


@contextmanager
def _one_run_at_a_time(cache: FeatureCache) -> Iterator[None]:
    """Let runs that fill the same cache at the same time wait for each other, and not compute the same twice."""
    from filelock import FileLock

    with FileLock(cache.folder / ".lock"):
        cache.refresh()  # also parts that are known: the run before may have been at one when this one looked
        yield
