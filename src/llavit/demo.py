"""The first run: a real LLaViT, trained through both stages and asked about pictures it never saw.

Everything comes out of ordinary Python packages (`llavit.starter`). Each step leaves its result in the output
folder, so a second run goes on where the first one stopped, or finds everything done.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llavit.peak import peak_memory
from llavit.progress import progress_bar, quiet_transformers
from llavit.train.recipe import Recipe, Stage

CORPUS = {"pretrain": 700, "instruct": 1300, "val": 0, "test": 280}
KINDS = {
    "name": 1.0,
    "colour": 2.0,
    "place": 2.0,
    "size": 1.0,
    "count": 1.5,
    "word": 1.0,
    "chart": 1.0,
}
"""What the demo's pictures show, with the weight of each kind in training; the test asks each kind alike."""


VOCABULARY = 24
"""Concepts, and words, that training shows: few enough to learn from a thousand pictures. The test has more."""

_PACE_TOKENS = 512
_FIXED_MINUTES, _LAYER_TOKENS = 4.0, 75_000.0
"""All of the recipe's steps take so many minutes and, beside them, this over the tokens that go through a layer of the
LLM in a second. Fitted to two machines of 2 cores: with AMX 27,000 tokens and 7 minutes, with AVX2 2,500 and 35."""
_MINUTES, _PATIENCE = 10.0, 40.0
_LEAST, _MOST = 0.25, 3.0
_ANSWER = 8  # tokens


def run_demo(
    output: str | Path = "runs/demo",
    overrides: Sequence[str] = (),
    counts: Mapping[str, int] = CORPUS,
    minutes: float | None = None,
) -> Path:
    """Build the starter, train, test, and write `report.json` and `report.html`.

    Args:
        output: folder of the run; also holds the pictures and both stages' models.
        overrides: changes to the recipe `demo`, as `--set` takes them; all of its steps are then taken.
        counts: pictures of each split.
        minutes: of training, more or less; see `share_of_steps` for what is done if not given.

    Returns:
        the folder of the trained model.

    Raises:
        ImportError: if the extra `starter` is not installed.
        ValueError: the folder holds a demo with another number of steps, or minutes are not above 0.

    Example:
        model_folder = run_demo("runs/demo")
    """
    from llavit.starter.corpus import build_corpus
    from llavit.starter.weights import starter_llm, starter_tower
    from llavit.train import load_recipe
    from llavit.train.run import train

    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes are {minutes}: expected a number above 0")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    clock = _Clock(folder / "cost.json")

    console.rule("1 of 4  Weights", align="left")
    with (
        clock.measure("weights"),
        console.status("taking the LLM and the vision tower out of their packages"),
    ):
        parts = [starter_llm(), starter_tower()]
    for part in parts:
        console.print(str(part), highlight=False, soft_wrap=True)

    console.rule("2 of 4  Pictures", align="left")
    with clock.measure("pictures"), progress_bar("drawing") as progress:
        corpus = build_corpus(
            folder / "data", kinds=KINDS, vocabulary=VOCABULARY, brief=True, progress=progress, **counts
        )
    console.print(
        f"{sum(corpus.counts.values()):,} pictures in {corpus.root}", highlight=False, soft_wrap=True
    )

    console.rule("3 of 4  Training", align="left")
    recipe = load_recipe("demo", overrides)
    pace = 1.0 if overrides else _chosen_pace(clock, parts[0], recipe.dtype, minutes, console)
    recipe = replace(fitted(recipe, corpus.root, pace), feature_cache=str(folder / "features"))
    with clock.measure("training"):
        model_folder = train(recipe, output=folder)

    console.rule("4 of 4  Test", align="left")
    items, answers, blind, grey = _test(model_folder, corpus.test, corpus.fingerprint, console, clock)
    report = _report(folder, recipe, corpus, items, answers, blind, grey, clock)
    console.print(_table(report))
    console.print(f"\nLook at it:    {folder / 'report.html'}", highlight=False, soft_wrap=True)
    picture = corpus.root / json.loads(corpus.test.read_text())[0]["image"]
    console.print(
        f"Ask it:        llavit ask {model_folder} {picture} 'What is in the picture?'", soft_wrap=True
    )
    console.print(f"Talk with it:  llavit chat {model_folder} {picture}\n", soft_wrap=True)
    return model_folder


def share_of_steps(rate: float, minutes: float | None = None) -> float:
    """What share of the recipe's steps a machine has time for.

    Args:
        rate: tokens per second through a layer of the LLM, forward and backward.
        minutes: of training. If not given: ten, and on a machine that cannot do all of the steps in ten, as many
            as they take, up to forty.

    Returns:
        the share, in quarters (timings are noisy), from 0.25 to 3; in twentieths from 0.05 if minutes are given.

    Example:
        ```python
        assert share_of_steps(27_000.0) == 1.5  # 2 cores with AMX
        assert share_of_steps(1_000.0) == 0.5 and share_of_steps(1_000.0, minutes=80) == 1.0
        ```
    """
    full = _minutes_of_all_steps(rate)
    if minutes is not None:
        return min(max(round(20 * minutes / full) / 20, 0.05), _MOST)
    return min(max(round(4 * max(_MINUTES, min(full, _PATIENCE)) / full) / 4, _LEAST), _MOST)


def _minutes_of_all_steps(rate: float) -> float:
    return _FIXED_MINUTES + _LAYER_TOKENS / rate


def _chosen_pace(clock: _Clock, llm: Path, dtype: str, minutes: float | None, console: Console) -> float:
    """The share of the recipe's steps, decided in the folder's first run and told to who waits."""
    rate = clock.once("rate", lambda: _measured_rate(llm, dtype))
    pace = clock.once("pace", lambda: share_of_steps(rate, minutes))
    if minutes is not None and pace != share_of_steps(rate, minutes):
        raise ValueError(
            f"{clock.path.parent} holds a demo with {pace:.0%} of the recipe's steps, and {minutes:g} minutes are "
            f"{share_of_steps(rate, minutes):.0%} of them: choose another --output, or leave --minutes out"
        )
    full = _minutes_of_all_steps(rate)
    told = f"{pace:.0%} of the recipe's steps: about {pace * full:.0f} minutes on this machine"
    if pace < 1:
        told += f"; all of them, and better answers, with --minutes {full:.0f}"
    elif pace * full > 2 * _MINUTES:
        told += f"; fewer, and poorer answers, with --minutes {_MINUTES:.0f}"
    console.print(told, highlight=False, soft_wrap=True)
    return pace


def _measured_rate(llm: Path, dtype: str) -> float:
    """Tokens per second through a layer of the LLM, forward and backward."""
    import torch
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    from llavit.compiling import why_not
    from llavit.precision import resolve_dtype

    kind, _ = resolve_dtype(dtype)
    device = _device()
    config = AutoConfig.from_pretrained(llm)
    config._attn_implementation = "eager" if kind is torch.bfloat16 and device.type == "cpu" else "sdpa"
    layer = LlamaDecoderLayer(config, layer_idx=0).to(device)
    compiled = why_not() is None
    if compiled:
        layer.compile(dynamic=True)
    hidden = torch.randn(2, _PACE_TOKENS // 2, config.hidden_size, device=device, requires_grad=True)
    positions = LlamaRotaryEmbedding(config).to(device)(
        hidden, torch.arange(hidden.shape[1], device=device)[None]
    )
    seconds = []
    for _ in range(40):
        start = time.perf_counter()
        with torch.autocast(device.type, kind, enabled=kind is not torch.float32):
            layer(hidden, position_embeddings=positions).sum().backward()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return _PACE_TOKENS / min(seconds)  # what else runs on the machine only makes it slower


def _device() -> Any:
    """Where training computes as well."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def fitted(recipe: Recipe, data: Path, pace: float = 1.0) -> Recipe:
    """Point the demo's recipe at a folder with its data, and give it as many steps as there is time for.

    Args:
        recipe: of `load_recipe("demo")`.
        data: folder of the corpus.
        pace: share of the recipe's steps.
    """

    def placed(stage: Stage) -> Stage:
        spec = stage.data
        if spec.mixture is not None:
            parts = tuple(replace(part, path=str(data / Path(part.path).name)) for part in spec.mixture)
            spec = replace(spec, mixture=parts)
        else:
            assert spec.path is not None  # DataSpec checked
            spec = replace(spec, path=str(data / Path(spec.path).name))
        return replace(stage, data=spec, steps=max(1, round(pace * (stage.steps or 1))))

    return replace(recipe, stages=tuple(map(placed, recipe.stages)))


def _test(
    model_folder: Path, test: Path, fingerprint: str, console: Console, clock: _Clock
) -> tuple[list[Any], list[str], list[str], list[str]]:
    """Answer the test with, without and with grey pictures, or read what this model answered before."""
    import torch

    from llavit import LlavitForConditionalGeneration, LlavitProcessor
    from llavit.evaluate import answer_items, load_items
    from llavit.precision import resolve_dtype
    from llavit.train.run import STEP_LOG

    items = load_items(test)
    made_by = {"corpus": fingerprint, "training": (model_folder / STEP_LOG).read_text(encoding="utf-8")}
    done = model_folder / "answers.json"
    if done.exists():
        found = json.loads(done.read_text(encoding="utf-8"))
        if found["made_by"] == made_by:
            return items, found["answers"], found["blind"], found["grey"]
    dtype, _ = resolve_dtype("auto")
    with (
        clock.measure("test"),
        quiet_transformers(),
        torch.autocast(_device().type, dtype, enabled=dtype is not torch.float32),
    ):
        model = LlavitForConditionalGeneration.from_pretrained(model_folder, dtype="float32").to(_device())
        processor = LlavitProcessor.from_pretrained(model_folder)
        ask = partial(answer_items, model, processor, items, max_new_tokens=_ANSWER)
        with progress_bar("asking with the picture") as progress:
            answers = ask(progress=progress)
        with progress_bar("asking without the picture") as progress:
            blind = ask(picture="none", progress=progress)
        with progress_bar("asking with a grey picture") as progress:
            grey = ask(picture="blank", progress=progress)
    _write(done, {"made_by": made_by, "answers": answers, "blind": blind, "grey": grey})
    return items, answers, blind, grey


def _report(
    folder: Path,
    recipe: Recipe,
    corpus: Any,
    items: list[Any],
    answers: list[str],
    blind: list[str],
    grey: list[str],
    clock: _Clock,
) -> dict[str, Any]:
    """Write report.json and report.html."""
    from llavit.evaluate.environment import environment
    from llavit.evaluate.report import render_report, score_report
    from llavit.evaluate.sheet import save_sheet
    from llavit.train.progress import read_step_log
    from llavit.train.run import STEP_LOG

    losses = {
        stage.name: [row["loss"] for row in read_step_log(folder / stage.name / STEP_LOG)]
        for stage in recipe.stages
    }
    made = {
        "command": "llavit demo",
        "recipe": f"{folder / 'recipe.yaml'}, seed {recipe.seed}",
        "decoding": f"greedy, at most {_ANSWER} tokens; exact match after normalisation",
        "blind": "the same model and questions without the pictures; grey: with a grey picture in place of each",
        "corpus": f"{corpus.fingerprint} (sha256), seed {corpus.seed}",
        **environment(),
    }
    report = {
        **score_report(items, answers, blind, losses, grey),
        "seconds": round(sum(clock.seconds.values()), 1),
        "seconds_per_step": clock.seconds,
        "peak_memory_gib": clock.peak_gib,
        "made": made,
    }
    _write(folder / "report.json", report)
    minutes = f"{report['seconds'] / 60:.0f} minutes"
    html = render_report(
        "LLaViT, the first run",
        f"SmolLM2-135M became a vision-language model in {minutes} on {os.cpu_count()} CPU cores, and was then asked "
        f"{len(items)} questions about drawings, words and charts it had never seen.",
        report,
        items,
        answers,
        blind,
        made,
    )
    (folder / "report.html").write_text(html, encoding="utf-8")
    save_sheet(items, answers, folder / "sheet.png")
    return report


def _table(report: dict[str, Any]) -> Table:
    table = Table(title="Unseen pictures: right answers, in per cent")
    table.add_column("task")
    for column in ("items", "model", "blind", "grey", "majority"):
        table.add_column(column, justify="right")
    scores = ("accuracy", "blind_accuracy", "grey_accuracy", "majority_accuracy")
    for task, row in report["per_task"].items():
        table.add_row(task, str(row["items"]), *(f"{100 * row[score]:.1f}" for score in scores))
    table.add_section()
    table.add_row(
        "all", str(report["items"]), *(f"{100 * report[score]:.1f}" for score in scores), style="bold"
    )
    return table


class _Clock:
    """Seconds of each step and peak memory, kept over interrupted runs; a step that is done adds next to nothing."""

    def __init__(self, path: Path):
        self.path = path
        found = json.loads(path.read_text()) if path.exists() else {}
        self.seconds: dict[str, float] = found.get("seconds", {})
        self.peak_gib: float = found.get("peak_memory_gib", 0.0)
        self.decided: dict[str, float] = found.get("decided", {})

    def once(self, name: str, measure: Callable[[], float]) -> float:
        """Measure something in the first run and remember it: a resumed run must not decide anew."""
        if name not in self.decided:
            self.decided[name] = measure()
            self._save()
        return self.decided[name]

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            with peak_memory() as peak:
                yield
        finally:
            spent = time.monotonic() - start
            self.seconds[step] = round(self.seconds.get(step, 0.0) + spent, 1)
            self.peak_gib = max(self.peak_gib, round(peak.bytes / 2**30, 2))
            self._save()

    def _save(self) -> None:
        _write(
            self.path,
            {"seconds": self.seconds, "peak_memory_gib": self.peak_gib, "decided": self.decided},
        )


def _write(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
