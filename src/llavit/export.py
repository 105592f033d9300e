"""A model as one plain folder that needs no other: adapters merged, int8 if wanted, with a model card."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

import llavit
from llavit.card import Scores, collect_facts, model_card
from llavit.evaluate.fingerprint import model_fingerprint
from llavit.evaluate.result import read_result
from llavit.folders import require_free, whole_folder
from llavit.loading import DTYPES, load_model, require_source
from llavit.model.adapters import has_adapters, merge_adapters
from llavit.model.quantize import is_int8, quantize_int8
from llavit.progress import quiet_transformers, status

logger = logging.getLogger(__name__)


def export(
    source: str | Path,
    output: str | Path,
    *,
    dtype: str = "auto",
    int8: bool = False,
    scores: Iterable[str | Path] | None = None,
    name: str | None = None,
    licence: str | None = None,
    languages: Sequence[str] = (),
    progress: bool = False,
) -> Path:
    """Write a model, its processor and a model card into one folder, which transformers loads after `import llavit`.

    Args:
        source: a folder, with adapters or without, or a hub id.
        output: a new folder, or an empty one; it appears when it is whole.
        dtype: of the weights; "auto" is that of the source, with `int8` bfloat16.
        int8: hold the LLM's weights in int8 (`llavit.model.quantize`).
        scores: result files of `llavit eval` for the card; if not given, those in the source's folder.
        name: of the model on the card; the output folder's if not given.
        licence: for the card, an identifier of the hub such as apache-2.0.
        languages: for the card, codes such as en.
        progress: say on stderr what is happening, if that is a terminal.

    Returns:
        the output folder.

    Raises:
        FileNotFoundError: no such model, or no such result file.
        ValueError: the output is taken, the source is int8 already and cannot be made anything else, or a file of
            scores is none.

    Example:
        ```python
        export("runs/demo/instruct", "llavit-demo", int8=True)
        ```
    """
    require_source(source)
    output = require_free(output)
    given = None if scores is None else [(Path(path), read_result(path)) for path in scores]
    kind = _dtype(source, dtype, int8)
    with quiet_transformers(), status(f"{source}: loading", show=progress) as say:
        model, processor = load_model(source, dtype=kind, device="cpu", progress=progress)
        if is_int8(model) and (dtype != "auto" or int8):
            raise ValueError(f"{source} is int8 already; export the model that it was made from")
        if has_adapters(model):
            say(f"{source}: merging adapters")
            merge_adapters(model)
        say(f"{source}: comparing fingerprints of scores")
        shown = _scores(source, _found(source) if given is None else given, model, processor, kind)
        if int8:
            say(f"{source}: making weights int8")
            quantize_int8(model)
        facts = collect_facts(source)
        _forget_places(model.config)
        with whole_folder(output) as folder:
            say(f"{output}: writing")
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            card = model_card(
                name or output.absolute().name,
                facts,
                shown,
                model=model,
                processor=processor,
                licence=licence,
                languages=languages,
                version=llavit.__version__,
            )
            (folder / "README.md").write_text(card, encoding="utf-8")
    return output


def _dtype(source: str | Path, dtype: str, int8: bool) -> str:
    """What "auto" stands for: the type that the source is saved in, and bfloat16 beside int8."""
    if dtype != "auto":
        return dtype
    if int8:
        return "bfloat16"
    config, _ = PreTrainedConfig.get_config_dict(source)
    saved = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return saved if saved in DTYPES else "float32"


def _found(source: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """Results of `llavit eval` beside the model; other JSON files are passed over."""
    found = []
    for path in sorted(Path(source).glob("eval*.json")):
        try:
            found.append((path, read_result(path)))
        except ValueError as error:
            logger.warning(f"not on the card: {error}")
    return found


def _scores(
    source: str | Path, results: list[tuple[Path, dict[str, Any]]], model: Any, processor: Any, dtype: str
) -> list[Scores]:
    """Say of each result whether it is of these weights: fingerprints are of weights as an evaluation loads them."""
    fingerprints: dict[str, str] = {}
    shown = []
    for path, result in results:
        measured = result["settings"]["dtype"]
        if measured not in fingerprints:
            loaded, words = load_model(source, dtype=measured, device="cpu")
            fingerprints[measured] = model_fingerprint(loaded, words)
        shown.append(Scores(path, result, result["settings"]["model"] == fingerprints[measured]))
    return shown


def _forget_places(config: Any) -> None:
    """Take out of a configuration where its parts were on this machine."""
    for part in (config, config.llm, config.tower):
        if Path(part._name_or_path or "").is_absolute():
            part._name_or_path = ""
