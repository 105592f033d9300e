"""Run a benchmark: every task through the model and its baselines, into one result that can be gone on with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from llavit.evaluate.asking import Answer, Asker
from llavit.evaluate.baselines import BASELINES, majority_texts, shuffled_pictures
from llavit.evaluate.bench import BenchTask, items_fingerprint
from llavit.evaluate.environment import environment
from llavit.evaluate.fingerprint import model_fingerprint
from llavit.evaluate.items import Picture
from llavit.evaluate.judge import require
from llavit.evaluate.reading import LETTERS
from llavit.evaluate.result import (
    FORMAT,
    one_writer,
    read_result,
    require_same,
    task_result,
    totals,
    write_result,
)
from llavit.model.encoding import evaluating

Mode = Literal["generate", "likelihood"]

CLOSED = 20
"""A task of metric "exact" with at most so many different answers is a closed one: likelihoods choose among them."""

FACTS = ("fingerprint", "family", "metric", "group", "max_new_tokens")
"""What a task's result must share with the task to count as its own."""

Progress = Callable[[str, int, int], None]
"""Called with (what is being asked, questions done, questions in all)."""

Finished = Callable[[str, dict[str, Any]], None]
"""Called with the id and the result of each task just done."""


def evaluate(
    model: Any,
    processor: Any,
    tasks: Sequence[BenchTask],
    *,
    mode: Mode = "generate",
    baselines: Sequence[str] = BASELINES,
    limit: int | None = None,
    batch_size: int = 32,
    output: str | Path | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    finished: Finished | None = None,
) -> dict[str, Any]:
    """Run tasks and return the result; with `output`, write it after each task, and go on with what lies there.

    Args:
        model: a LLaViT or LLaVA model; what of it is in training stays so.
        processor: its processor.
        tasks: of `load_bench`.
        mode: "generate" reads answers out of greedily decoded text; "likelihood" takes the likeliest of a task's
            possible answers (letters of a choice, yes and no, the answers of a closed task), by mean log-probability
            per token. Tasks without such answers are generated in either mode, and their results say so.
        baselines: out of `BASELINES`.
        limit: only so many items of each task, from the first (a group is not cut).
        batch_size: questions that run together; changes speed and memory.
        output: the result file. Its finished tasks are not run again; the mean is over all tasks in the file.
        name: of the model in tables; its folder's name if None.
        progress: see `Progress`.
        finished: see `Finished`.

    Returns:
        the result, as in the file; README.md in this room describes it.

    Raises:
        ValueError: unknown mode or baseline; two tasks of one id; `output` holds a run of another model or of other
            settings, or of other items or another metric; a task of which every item failed.
        ImportError: a package that a metric needs is missing.

    Example:
        result = evaluate(model, processor, load_bench("runs/bench", "mini-pope"), output="run.json")
        print(result["tasks"]["mini-pope@starter-1"]["score"])
    """
    check(tasks, mode, baselines)
    source = getattr(model.config, "_name_or_path", "") or ""
    settings = {
        "model": model_fingerprint(model, processor),
        "mode": mode,
        "baselines": list(baselines),
        "limit": limit,
        "dtype": str(model.dtype).removeprefix("torch."),
        "decoding": decoding(mode),
    }
    with evaluating(model):
        return run_tasks(
            Asker(model, processor, batch_size),
            tasks,
            settings,
            _about_model(model, source),
            batch_size=batch_size,
            output=output,
            name=name or Path(source).name or "model",
            progress=progress,
            finished=finished,
        )


def run_tasks(
    asker: Any,
    tasks: Sequence[BenchTask],
    settings: dict[str, Any],
    about: dict[str, Any],
    *,
    batch_size: int,
    output: str | Path | None,
    name: str,
    progress: Progress | None,
    finished: Finished | None,
) -> dict[str, Any]:
    """Ask all tasks and keep the result: what `evaluate` does with whoever answers.

    Args:
        asker: answers, as `Asker` does.
        tasks: which.
        settings: what a run must share to go on; mode, baselines and limit are taken from here.
        about: the result's entry about the model.
        batch_size: as the result states it.
        output: see `evaluate`.
        name: of the model in tables.
        progress: see `Progress`.
        finished: see `Finished`.
    """
    mode, baselines, limit = settings["mode"], settings["baselines"], settings["limit"]
    tasks = with_fingerprints(tasks)
    chosen = [task if limit is None else task.first(limit) for task in tasks]
    result = _begun(output, settings, chosen) or {
        "format": FORMAT,
        "name": name,
        "complete": False,
        "settings": settings,
        "model": about,
        "environment": environment(),
        "batch_size": batch_size,
        "seconds": 0.0,
        "tasks": {},
    }
    passes = 1 + sum(baseline != "majority" for baseline in baselines)
    waiting = [task for task in chosen if task.id not in result["tasks"]]
    total = passes * sum(len(task.items) for task in chosen)
    done = total - passes * sum(len(task.items) for task in waiting)
    for task in waiting:

        def count(more: int, what: str = task.name) -> None:
            nonlocal done
            done += more
            if progress:
                progress(what, done, total)

        count(0)
        start = time.monotonic()
        asked, pass_seconds = _ask(asker, task, mode, baselines, count)
        asker.forget_pictures()
        seconds = time.monotonic() - start
        result["tasks"][task.id] = task_result(
            task,
            asked,
            mode=mode
            if mode == "generate" or possible_answers(task)
            else "generate (no closed set of answers)",
            max_new_tokens=task.max_new_tokens,
            prompt=asker.rendered(task.items[0]),
            seconds=round(seconds, 2),
            pass_seconds={key: round(value, 2) for key, value in pass_seconds.items()},
            items_per_second=round(passes * len(task.items) / seconds, 2),
        )
        _keep(result, chosen, output)
        if finished:
            finished(task.id, result["tasks"][task.id])
    if not waiting:
        _keep(result, chosen, output)
    return result


def decoding(mode: str) -> dict[str, Any]:
    """Say how answers come about, for the result's settings."""
    ends: dict[str, Any] = {
        "strategy": "greedy",
        "ends with": ["the end-of-turn token", "a line break behind text"],
    }
    if mode != "generate":
        ends["likelihood"] = "mean log-probability per token, without end of turn"
    return ends


def _ask(
    asker: Any, task: BenchTask, mode: Mode, baselines: Sequence[str], count: Callable[[int], None]
) -> tuple[dict[str, Sequence[Answer]], dict[str, float]]:
    """Ask a task's questions with its own pictures, and as the baselines want them."""
    shown: dict[str, list[Picture]] = {"model": ["own"] * len(task.items)}
    if "blind" in baselines:
        shown["blind"] = ["none"] * len(task.items)
    if "shuffled" in baselines:
        shown["shuffled"] = shuffled_pictures(task)
    options = possible_answers(task) if mode == "likelihood" else None
    asked: dict[str, Sequence[Answer]] = {}
    seconds: dict[str, float] = {}
    for who, pictures in shown.items():
        start = time.monotonic()
        if options:
            asked[who] = asker.choose(task.items, pictures, options, count)
        else:
            asked[who] = asker.generate(task.items, pictures, task.max_new_tokens, count)
        seconds[who] = time.monotonic() - start
    if "majority" in baselines:
        asked["majority"] = [Answer(text) for text in majority_texts(task)]
    return asked, seconds


def possible_answers(task: BenchTask) -> list[tuple[str, ...]] | None:
    """Return the possible answers of each item, or None where they are no closed set.

    Example:
        >>> from llavit.evaluate.items import Item
        >>> item = Item("1", None, "Is fire hot?", "yes", "hot")
        >>> possible_answers(BenchTask("hot@mine-1", "hot", "general", "yes_no", items=(item,)))
        [('yes', 'no')]
    """
    if task.metric == "choice":
        return [tuple(LETTERS[: len(item.options or ())]) for item in task.items]
    if task.metric == "yes_no":
        return [("yes", "no")] * len(task.items)
    answers = tuple(sorted({item.answer for item in task.items}))
    if task.metric == "exact" and len(answers) <= CLOSED:
        return [answers] * len(task.items)
    return None


def check(tasks: Sequence[BenchTask], mode: str, baselines: Sequence[str]) -> None:
    """Raise what `evaluate` raises before it begins: unknown modes and baselines, tasks of one id, missing packages."""
    if mode not in get_args(Mode):
        raise ValueError(f"expected a mode out of {list(get_args(Mode))}, got {mode!r}")
    unknown = sorted(set(baselines) - set(BASELINES))
    if unknown:
        raise ValueError(f"unknown baselines {unknown}: expected some of {list(BASELINES)}")
    ids = [task.id for task in tasks]
    if not ids or len(set(ids)) != len(ids):
        raise ValueError(f"expected tasks of different ids, got {ids}")
    require([task.metric for task in tasks])


def _begun(
    output: str | Path | None, settings: dict[str, Any], tasks: Sequence[BenchTask]
) -> dict[str, Any] | None:
    """What lies at `output`, if it is the beginning of this very run."""
    if output is None or not Path(output).exists():
        return None
    found = read_result(output)
    require_same(found["settings"], settings, Path(output))
    require_same_tasks(found["tasks"], tasks, Path(output))
    if not all("points" in task for task in found["tasks"].values()):
        raise ValueError(
            f"{output} is a summary without single predictions (`llavit table --summary`), with which no run goes on: "
            "choose another --output"
        )
    return found


def require_same_tasks(found: Mapping[str, Any], tasks: Sequence[BenchTask], path: Path) -> None:
    """Check that tasks whose results lie in a file are still what they were, as far as the file states it.

    Args:
        found: results in the file, by id of the task.
        tasks: those of the run.
        path: of the file, for the message.

    Raises:
        ValueError: other items, or another metric, family, group or answer length.
    """
    stated = [(fact, task) for task in tasks if task.id in found for fact in FACTS if fact in found[task.id]]
    require_same(
        {_of(fact, task): found[task.id][fact] for fact, task in stated},
        {_of(fact, task): getattr(task, fact) for fact, task in stated},
        path,
    )


def with_fingerprints(tasks: Sequence[BenchTask]) -> list[BenchTask]:
    """Return tasks that all state what their items are: of those that do not, it is worked out."""
    return [
        task if task.fingerprint else replace(task, fingerprint=items_fingerprint(task)) for task in tasks
    ]


def _of(fact: str, task: BenchTask) -> str:
    return f"{'items' if fact == 'fingerprint' else fact} of {task.id}"


def _keep(result: dict[str, Any], chosen: Sequence[BenchTask], output: str | Path | None) -> None:
    """Bring a result up to date, in its file too if there is one, with what other processes have finished in it."""
    if output is None:
        _update(result, chosen)
        return
    with one_writer(output):
        _take_in(result, output)
        _update(result, chosen)
        write_result(result, output)


def _take_in(result: dict[str, Any], output: str | Path) -> None:
    """Take in what another process has finished in the same file meanwhile, so that it is not written over."""
    if Path(output).exists():
        found = read_result(output)
        require_same(found["settings"], result["settings"], Path(output))
        result["tasks"] = {**found["tasks"], **result["tasks"]}


def _update(result: dict[str, Any], chosen: Sequence[BenchTask]) -> None:
    """Set what is computed over all tasks, and keep the tasks last: they are long."""
    tasks = result.pop("tasks")
    seconds = round(sum(task["seconds"] for task in tasks.values()), 2)
    complete = all(task.id in tasks for task in chosen)
    result.update({"complete": complete, "seconds": seconds, **totals(tasks)})
    result["tasks"] = tasks


def _about_model(model: Any, source: str) -> dict[str, Any]:
    config = model.config
    layers = config.vision_feature_layer
    return {
        "source": Path(source).name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "llm": type(model.model.language_model).__name__,
        "vision_feature_layer": layers if isinstance(layers, int) else list(layers),
        "visual_qkv": getattr(config, "visual_qkv", False),
        "bidirectional_visual_attention": getattr(config, "bidirectional_visual_attention", False),
        "visual_tokens": config.image_seq_length,
    }
