"""Knock-out: what it costs a model's accuracy that parts of it are blocked (`blocking.py`), by family of tasks.

All questions are asked as they are, then with each part knocked out; losses are paired over the same items. Asking,
judging and intervals are those of `llavit.evaluate`.

Shapes: k knock-outs, f families and behind them their mean, 3 value and ends of the 95 % interval.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from llavit.evaluate.asking import Asker
from llavit.evaluate.bench import BenchTask
from llavit.evaluate.fingerprint import model_fingerprint
from llavit.evaluate.intervals import Estimate, loss_estimate, mean_estimate
from llavit.evaluate.judge import judge, points
from llavit.evaluate.result import FORMAT, read_result, require_same, write_result
from llavit.evaluate.run import (
    FACTS,
    Mode,
    Progress,
    check,
    possible_answers,
    require_same_tasks,
    with_fingerprints,
)
from llavit.inspect.blocking import ATTENTION, PROJECTIONS, Block, knockout, why_not
from llavit.inspect.knockouts_page import draw, failures, table
from llavit.inspect.report import Analysis, escape, figure_html
from llavit.inspect.weights import chosen_layers
from llavit.model.encoding import evaluating

WHOLE = "nothing knocked out"
NO_IMAGE = "no image at all"
"""Names of the two conditions that stand beside the knock-outs; the second is the most that an image can be worth."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Knockouts(Analysis):
    """What knock-outs cost one model.

    Attributes:
        names: of the k knock-outs, the last of them `NO_IMAGE`.
        families: of the tasks, and "mean" (over families but anchors, if there are several) as the last.
        items: how many questions each has.
        score_f3: (f, 3) of the whole model, 0 to 1.
        loss_kf3: (k, f, 3) how much lower the score is; NaN where a knock-out does not apply.
        unparsed_k: (k,) answers that could not be read, over all tasks; -1 where a knock-out does not apply.
        not_applicable: why, by name.
    """

    NAME: ClassVar[str] = "knockout"
    TITLE: ClassVar[str] = "Knock-out"
    ABOUT: ClassVar[str] = (
        "How many points of accuracy are lost when attention between kinds of tokens is blocked, or when visual tokens "
        "go through the text projections. Bars are 95 % intervals of the paired bootstrap over the same items; a loss "
        "whose bar covers 0 may be chance. The last row leaves the image out: more than that an image cannot be worth."
    )

    names: list[str]
    families: list[str]
    items: list[int]
    score_f3: np.ndarray
    loss_kf3: np.ndarray
    unparsed_k: np.ndarray
    not_applicable: dict[str, str]

    def facts(self) -> dict[str, Any]:
        """Return what `Analysis.facts` does, with scores and losses by name."""

        def by_family(rows: np.ndarray) -> dict[str, dict[str, float]]:
            ends = ("value", "low", "high")
            return {
                family: {end: round(float(x), 6) for end, x in zip(ends, row, strict=True)}
                for family, row in zip(self.families, rows, strict=True)
            }

        losses = {
            name: by_family(rows)
            for name, rows in zip(self.names, self.loss_kf3, strict=True)
            if name not in self.not_applicable
        }
        return {**super().facts(), "scores": by_family(self.score_f3), "losses": losses}

    def figure(self) -> Any:
        """Draw losses with their intervals, a panel for each family."""
        return draw([self])

    def body(self) -> str:
        """Return picture and table."""
        note = "".join(f"<p>{escape(each)}</p>" for each in failures(self))
        return figure_html(self.figure(), "loss of accuracy by knock-out and family") + note + table(self)


def standard_blocks(count: int, ranges: Sequence[Sequence[int]] | None = None) -> list[Block]:
    """Return the knock-outs that are measured unless others are given.

    Args:
        count: layers of the LLM.
        ranges: of layers, in which attention is blocked as well as in all; thirds if not given.

    Example:
        >>> [block.name for block in standard_blocks(30)][:3]
        ['visual to visual', 'visual to visual, layers 0-9', 'visual to visual, layers 10-19']
    """
    if ranges is None:
        ends = [round(count * part / 3) for part in range(4)]
        ranges = [range(a, b) for a, b in itertools.pairwise(ends) if b > a]
    spread = [Block(what, layers) for what in ATTENTION for layers in (None, *ranges)]
    return [*spread, *map(Block, PROJECTIONS)]


def measure_knockouts(
    model: Any,
    processor: Any,
    tasks: Sequence[BenchTask],
    blocks: Sequence[Block] | None = None,
    *,
    mode: Mode = "generate",
    limit: int | None = None,
    batch_size: int = 32,
    output: str | Path | None = None,
    name: str = "model",
    progress: Progress | None = None,
) -> Knockouts:
    """Measure the loss of accuracy by each knock-out, per family of tasks.

    Args:
        model: a LLaVA or LLaViT, under sdpa or eager attention.
        processor: its processor.
        tasks: of `llavit.evaluate.bench.read_tasks` or `load_bench`.
        blocks: what to knock out, one after the other; `standard_blocks` if not given. What does not apply to the model
            is listed with the reason.
        mode: "generate" reads answers out of greedily decoded text; "likelihood" takes the likeliest of a task's
            possible answers, so that a knock-out cannot cost points merely by spoiling the form of answers.
        limit: only so many items of each task, from the first (a group is not cut).
        batch_size: questions that run together.
        output: a file of answers that is written after each knock-out of a task; what it holds is not asked again.
        name: of the model in tables.
        progress: called with (what is being asked, questions done, questions in all).

    Raises:
        ValueError: no tasks, or two of one id; an unknown mode; a block of a layer that there is not; `output` holds
            answers of another model, other settings, items or metrics; all items of a task failed.

    Example:
        ```python
        tasks = read_tasks("runs/demo/data")
        found = measure_knockouts(model, processor, tasks, [Block("visual_to_visual")], limit=20)
        lost, low, high = found.loss_kf3[0, -1]
        ```
    """
    if not tasks:
        raise ValueError("knock-out: expected at least one task, got none")
    check(tasks, mode, baselines=[])
    tasks = with_fingerprints(tasks)
    tasks = [task if limit is None else task.first(limit) for task in tasks]
    blocks = standard_blocks(model.config.llm.num_hidden_layers) if blocks is None else blocks
    for each in blocks:
        chosen_layers(model, each.layers)  # a layer that there is not is told before anything is asked
    reasons = {block.name: reason for block in blocks if (reason := why_not(model, block))}
    conditions: dict[str, Block | None] = {WHOLE: None}
    conditions |= {block.name: block for block in blocks if block.name not in reasons} | {NO_IMAGE: None}
    settings = {
        "model": model_fingerprint(model, processor),
        "mode": mode,
        "limit": limit,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    found = _begun(output, settings, tasks)
    total = len(conditions) * sum(len(task.items) for task in tasks)
    done = sum(
        len(task.items) * len(conditions.keys() & found["tasks"].get(task.id, {}).get("runs", {}).keys())
        for task in tasks
    )
    asker = Asker(model, processor, batch_size)
    with evaluating(model):
        for task in tasks:
            about = {fact: getattr(task, fact) for fact in FACTS} | {"items": len(task.items), "runs": {}}
            kept = found["tasks"].setdefault(task.id, about)["runs"]
            for condition, block in conditions.items():
                if condition in kept:
                    continue

                def count(more: int, what: str = f"{task.name}: {condition}") -> None:
                    nonlocal done
                    done += more
                    if progress:
                        progress(what, done, total)

                count(0)
                with nullcontext() if block is None else knockout(model, block):
                    kept[condition] = _ask(asker, task, mode, condition == NO_IMAGE, count)
                if output is not None:
                    write_result(found, output)
            asker.forget_pictures()
    names = [*(block.name for block in blocks), NO_IMAGE]
    return _result(
        {task.id: found["tasks"][task.id] for task in tasks}, names, reasons, name=name, settings=settings
    )


def _ask(
    asker: Asker, task: BenchTask, mode: Mode, blind: bool, count: Callable[[int], None]
) -> dict[str, Any]:
    """Ask a task's questions and judge the answers."""
    start = time.monotonic()
    pictures: list[Any] = ["none" if blind else "own"] * len(task.items)
    options = possible_answers(task) if mode == "likelihood" else None
    if options:
        answers = asker.choose(task.items, pictures, options, count)
    else:
        answers = asker.generate(task.items, pictures, task.max_new_tokens, count)
    if all(answer.text is None for answer in answers):
        raise ValueError(
            f"task {task.id}: all {len(answers)} items failed, the first with {answers[0].error}"
        )
    marks = judge(task, [answer.text for answer in answers])
    return {
        "points": points(task, marks),
        "unparsed": sum(mark.status == "unparsed" for mark in marks),
        "failed": sum(mark.status == "failed" for mark in marks),
        "seconds": round(time.monotonic() - start, 2),
        "texts": [answer.text for answer in answers],
    }


def _begun(output: str | Path | None, settings: dict[str, Any], tasks: Sequence[BenchTask]) -> dict[str, Any]:
    """Give what lies at `output`, if it is of this model, these settings and items; or a beginning."""
    if output is None or not Path(output).exists():
        return {"format": FORMAT, "settings": settings, "tasks": {}}
    found = read_result(output)
    require_same(found["settings"], settings, Path(output))
    require_same_tasks(found["tasks"], tasks, Path(output))
    return found


def _result(
    tasks: Mapping[str, Any],
    names: list[str],
    reasons: dict[str, str],
    name: str,
    settings: Mapping[str, Any],
) -> Knockouts:
    """Compute scores and losses out of points."""
    families = list(dict.fromkeys(task["family"] for task in tasks.values()))
    members = {family: [key for key in tasks if tasks[key]["family"] == family] for family in families}
    cuts = [(family, dict.fromkeys(members[family], 1.0)) for family in families]
    if len(families) > 1:
        judged = [members[family] for family in families if family != "anchor"]  # as the evaluation's mean
        cuts.append(("mean", {key: 1 / len(keys) for keys in judged for key in keys}))

    def of(condition: str, keys: Mapping[str, float]) -> dict[str, Sequence[float]]:
        return {key: tasks[key]["runs"][condition]["points"] for key in keys}

    def row(estimate: Estimate) -> list[float]:
        return [estimate.score, estimate.low, estimate.high]

    runs = [None if name in reasons else name for name in names]
    losses = [
        [
            [np.nan] * 3 if run is None else row(loss_estimate(of(WHOLE, keys), of(run, keys), keys))
            for _, keys in cuts
        ]
        for run in runs
    ]
    unparsed = [
        -1 if run is None else sum(task["runs"][run]["unparsed"] for task in tasks.values()) for run in runs
    ]
    asked = [run for run in (WHOLE, *runs) if run is not None]
    seconds = {run: round(sum(task["runs"][run]["seconds"] for task in tasks.values()), 2) for run in asked}
    failed = {run: sum(task["runs"][run]["failed"] for task in tasks.values()) for run in asked}
    return Knockouts(
        model=name,
        settings={
            **settings,
            "tasks": {key: task["fingerprint"] for key, task in tasks.items()},
            "seconds": seconds,
            "failed": {run: count for run, count in failed.items() if count},
        },
        names=names,
        families=[family for family, _ in cuts],
        items=[sum(tasks[key]["items"] for key in keys) for _, keys in cuts],
        score_f3=np.array([row(mean_estimate(of(WHOLE, keys), keys)) for _, keys in cuts]),
        loss_kf3=np.array(losses),
        unparsed_k=np.array(unparsed),
        not_applicable=reasons,
    )
