"""Run a suite of real benchmarks with lmms-eval, task by task, and write results that say how they came about.

    OUTPUT/SUITE.json             our form: scores, versions, prompts, decoding, and lmms-eval's own results whole
    OUTPUT/tasks/TASK.json        one task's part, written as soon as it is done: what a resumed run reuses
    OUTPUT/tasks/TASK.jsonl       lmms-eval's record of each sample: answer, target, scores

A task that cannot run (its data set is neither on this machine nor within reach) or that fails has no score.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llavit.evaluate.environment import environment
from llavit.evaluate.lmms.hub import hub_reachable, on_this_machine
from llavit.evaluate.lmms.paper import SUITES, SuiteTask
from llavit.model.adapters import ADAPTER

FORMAT = 1
"""Raised when the JSON files mean something else."""

# What tasks and evaluator of lmms-eval read off its command line, with the defaults of its parser, beside the folder
# in which some tasks write files of their own.
_COMMAND_LINE = {
    "process_with_media": False,
    "reasoning_tags": '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]',
}

_BESIDE = ("eval*.json", "*.md", "*.log", "*.html", "*.png")
"""Files in a model's folder that say nothing of the model."""


def run_suite(
    model: str | Path,
    suite: str = "paper",
    *,
    output: str | Path,
    tasks: str | Sequence[str] = "all",
    batch_size: int = 8,
    dtype: str = "auto",
    device: str | None = None,
    limit: int | None = None,
    include_path: str | Path | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a model on a suite; the same call again goes on where it stopped.

    Args:
        model: a folder or a hub id, LLaViT or LLaVA.
        suite: a name in `SUITES`.
        output: folder for the results.
        tasks: some of the suite's tasks only, as a list or with commas between; with `include_path` also tasks of
            that folder.
        batch_size: requests answered together.
        dtype: auto, bfloat16, float16 or float32.
        device: where the model computes; the GPU if there is one.
        limit: the first so many samples of each task, to try things out; scores are then not the benchmark's.
        include_path: folder with further tasks in lmms-eval's format (`export_lmms_task`), which need no hub.
        report: called with a line of text on each task.

    Returns:
        what was written to OUTPUT/SUITE.json. Each entry of "tasks" has a "status": "done", "needs the hub" (with
        the data set's id) or "failed" (with the error); only done ones have scores.

    Raises:
        ValueError: an unknown suite or task.
        ImportError: lmms-eval is missing; says how to install it.

    Example:
        results = run_suite("runs/my/instruct", "paper", output="runs/my/paper", tasks="mmvp,pope")
        print(results["tasks"]["pope"]["scores"])
    """
    wanted = choose(suite, tasks, local=include_path is not None)
    say = report or (lambda line: None)
    _require_lmms_eval()
    folder = Path(output)
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    settings = {
        "format": FORMAT,
        "model": str(model),
        "model_files": folder_fingerprint(model),
        "lmms_eval": version("lmms_eval"),
        "dtype": dtype,
        "limit": limit,
    }
    runner = _Runner(settings, folder, batch_size, device, include_path)
    reachable: bool | None = None
    entries: dict[str, dict[str, Any]] = {}
    for task in wanted:
        runner.settings = _with_task_files(settings, task, include_path)
        entry = _finished(folder, task.name, runner.settings)
        if entry is None and task.dataset and not on_this_machine(task.dataset):
            reachable = hub_reachable() if reachable is None else reachable
            if not reachable:
                entry = {"status": "needs the hub", "dataset": task.dataset, "family": task.family}
        entries[task.name] = entry or runner.run(task)
        say(_line(task.name, entries[task.name]))
    result = {
        **settings,
        "suite": suite,
        "batch_size": batch_size,
        "environment": {**environment(), "lmms_eval": settings["lmms_eval"]},
        "tasks": entries,
        "not_run": [name for name, entry in entries.items() if entry["status"] != "done"],
    }
    _write(folder / f"{suite}.json", result)
    return result


def choose(suite: str, tasks: str | Sequence[str] = "all", *, local: bool = False) -> list[SuiteTask]:
    """Return a suite's tasks, or the named ones of them.

    Args:
        suite: a name in `SUITES`.
        tasks: "all", or names, as a list or with commas between.
        local: take unknown names as tasks of a folder of the user's, which need no hub.

    Raises:
        ValueError: an unknown suite or task; names those that there are.

    Example:
        >>> [task.dataset for task in choose("paper", "pope,mmvp")]
        ['lmms-lab-encoder/POPE', 'lmms-lab-eval/MMVP']
    """
    if suite not in SUITES:
        raise ValueError(f"unknown suite {suite!r}: there is {', '.join(SUITES)}")
    known = {task.name: task for task in SUITES[suite]}
    names = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else list(tasks)
    if names == ["all"]:
        return list(known.values())
    unknown = [name for name in names if name not in known]
    if unknown and not local:
        raise ValueError(f"unknown tasks {unknown}: the suite {suite!r} has {', '.join(known)}")
    return [known.get(name) or SuiteTask(name, "own", "", (), ()) for name in names]


def folder_fingerprint(model: str | Path) -> str | None:
    """Return the sha256 over what a model folder holds, adapters included; None for a hub id, which names its own.

    What is written beside a model and says nothing of it, results of `llavit eval` and pages of text, does not count.

    Args:
        model: a folder or a hub id.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    files = [path for pattern in ("*", f"{ADAPTER}/*") for path in folder.glob(pattern) if path.is_file()]
    counted = (path for path in files if not any(path.match(pattern) for pattern in _BESIDE))
    return _digest(sorted(counted), folder)


def _digest(files: Sequence[Path], folder: Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()


class _Runner:
    """Loads the model for the first task that needs it, and keeps it."""

    def __init__(
        self,
        settings: dict[str, Any],
        folder: Path,
        batch_size: int,
        device: str | None,
        include_path: str | Path | None,
    ):
        self.settings, self.folder, self.batch_size, self.device = settings, folder, batch_size, device
        self.include_path = None if include_path is None else str(include_path)
        self._model: Any = None

    @property
    def model(self) -> Any:
        if self._model is None:
            from llavit.evaluate.lmms.plugin import LlavitLmms

            self._model = LlavitLmms(
                self.settings["model"],
                dtype=self.settings["dtype"],
                device=self.device,
                batch_size=self.batch_size,
                keep_model=True,
            )
        return self._model

    def run(self, task: SuiteTask) -> dict[str, Any]:
        """Run one task; what goes wrong in it is its entry, not the end of the suite."""
        model = self.model  # a model that does not load is the end of the suite
        started = time.perf_counter()
        try:
            results = self._evaluate(model, task.name)
            samples = results.pop("samples")[task.name]
            entry = {
                "status": "done",
                "family": task.family,
                "dataset": task.dataset,
                "scores": scores(results["results"][task.name], task.metrics),
                "top": dict(zip(task.metrics, task.top, strict=True)),
                "samples": len(samples),
                "empty_answers": sum(not "".join(map(str, one["filtered_resps"])).strip() for one in samples),
                "longer_than_context": len(model.long.get(task.name, [])),
                "decoding": results["configs"][task.name].get("generation_kwargs"),
                "prompt": model.prompts.get(task.name),
                "seconds": round(time.perf_counter() - started, 1),
                "settings": self.settings,
                "lmms_eval": results,
            }
        except Exception as error:
            cause = _cause(error)
            return {
                "status": "failed",
                "family": task.family,
                "dataset": task.dataset,
                "error": f"{type(cause).__name__}: {cause}",
                "traceback": traceback.format_exc(),
            }
        with open(self.folder / "tasks" / f"{task.name}.jsonl", "w", encoding="utf-8") as out:
            for sample in samples:
                out.write(json.dumps(sample, default=str, ensure_ascii=False) + "\n")
        _write(self.folder / "tasks" / f"{task.name}.json", entry)
        return json.loads(json.dumps(entry, default=str))

    def _evaluate(self, model: Any, task: str) -> dict[str, Any]:
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager

        manager = TaskManager("WARNING", include_path=self.include_path, model_name="llavit")
        results = simple_evaluate(
            model=model,
            model_args=f"pretrained={self.settings['model']},dtype={self.settings['dtype']}",
            tasks=[task],
            batch_size=self.batch_size,
            device=str(model.device),
            limit=self.settings["limit"],
            log_samples=True,
            task_manager=manager,
            cli_args=Namespace(output_path=str(self.folder / "tasks" / task), **_COMMAND_LINE),
            bootstrap_iters=1000,
        )
        if task not in results["results"]:
            raise ValueError(f"lmms-eval gave no results for {task}, but for {sorted(results['results'])}")
        return results


def scores(found: dict[str, Any], metrics: Sequence[str] = ()) -> dict[str, float]:
    """Read scores out of lmms-eval's results of a task, whose keys are "METRIC,FILTER".

    Args:
        found: the results of one task.
        metrics: those wanted, in this order; all but standard errors if empty.

    Raises:
        ValueError: a metric is missing or not a number, or two filters give it.

    Example:
        >>> scores({"alias": "pope", "pope_f1_score,none": 0.5, "pope_f1_score_stderr,none": "N/A"})
        {'pope_f1_score': 0.5}
    """
    by_metric: dict[str, list[Any]] = {}
    for key, value in found.items():
        metric, comma, _ = key.partition(",")
        if comma and "_stderr" not in metric:
            by_metric.setdefault(metric, []).append(value)
    chosen = metrics or [name for name, values in by_metric.items() if _is_number(values[0])]
    made = {}
    for metric in chosen:
        values = by_metric.get(metric, [])
        if len(values) != 1 or not _is_number(values[0]):
            raise ValueError(f"expected one number as {metric}, got {values} among {sorted(found)}")
        made[metric] = float(values[0])
    return made


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _with_task_files(
    settings: dict[str, Any], task: SuiteTask, include_path: str | Path | None
) -> dict[str, Any]:
    """Add what the files of a user's own task hold to the settings: written anew, it is another task of that name."""
    if task.dataset or include_path is None:
        return settings
    own = Path(include_path) / task.name
    return {**settings, "task_files": _digest(sorted(path for path in own.rglob("*") if path.is_file()), own)}


def _finished(folder: Path, task: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    try:
        entry = json.loads((folder / "tasks" / f"{task}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if entry["settings"] == settings:
        return entry
    differs = sorted(
        key
        for key in settings.keys() | entry["settings"].keys()
        if entry["settings"].get(key) != settings.get(key)
    )
    raise ValueError(
        f"{folder} holds results of {task} with other settings ({', '.join(differs)}); choose another output folder, "
        "or delete this one"
    )


def _write(path: Path, value: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def _line(task: str, entry: dict[str, Any]) -> str:
    if entry["status"] == "done":
        numbers = ", ".join(f"{metric} {value:.4g}" for metric, value in entry["scores"].items())
        return f"{task}: {numbers} ({entry['samples']} samples, {entry['seconds']:.0f} s)"
    if entry["status"] == "failed":
        return f"{task}: FAILED, no score: {entry['error']}"
    return f"{task}: not run, needs the hub (data set {entry['dataset']})"


def _cause(error: BaseException) -> BaseException:
    """The error behind those that retries wrap around it."""
    attempt = getattr(error, "last_attempt", None)
    return attempt.exception() or error if attempt is not None else error


def _require_lmms_eval() -> None:
    try:
        version("lmms_eval")
    except PackageNotFoundError:
        raise ImportError(
            "the suite runs with lmms-eval: pip install 'llavit[lmms]', best in an environment of its own "
            "(docs/benchmarks/real.md)"
        ) from None
