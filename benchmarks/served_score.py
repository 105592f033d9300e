"""Is a model served by vLLM the same model? The benchmark over HTTP against the benchmark in this process.

    python -m benchmarks.served_score runs/demo/instruct --vllm .venv-vllm --tasks all --limit 10

Both in float32. Writes docs/serving/vllm-score.json: scores of both, and each question whose answers differ.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.speed.channel import ROOT
from benchmarks.speed.servers import Server, vllm_command, vllm_environment, vllm_facts

OUTPUT = ROOT / "docs" / "serving" / "vllm-score.json"


def main(arguments: list[str] | None = None) -> None:
    """Score both ways and write what came out."""
    parser = argparse.ArgumentParser(prog="benchmarks.served_score", description=__doc__)
    parser.add_argument("model", type=Path, help="a LLaViT's folder")
    parser.add_argument("--about", default="", help="what the model is, for the result")
    parser.add_argument("--vllm", required=True, help="folder of an environment with vLLM and llavit")
    parser.add_argument("--bench", type=Path, default=ROOT / "runs" / "bench")
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--limit", type=int, help="items of each task")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vllm-option", action="append", default=[])
    parser.add_argument("--output", "-o", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    found = scores(
        options.model,
        options.vllm,
        options.bench,
        options.tasks,
        limit=options.limit,
        threads=options.threads,
        options=tuple(options.vllm_option),
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        json.dumps({"about": options.about, **found}, indent=1) + "\n", encoding="utf-8"
    )
    print(f"{found['alike']} of {found['questions']} answers alike; {options.output}")


def scores(
    model: Path,
    vllm: str,
    bench: Path,
    tasks: str,
    *,
    limit: int | None = None,
    threads: int = 1,
    options: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Score a model here and served by vLLM, in float32.

    Args:
        model: its folder.
        vllm: folder of an environment.
        bench: folder of a benchmark.
        tasks: see `load_bench`.
        limit: items of each task.
        threads: of vLLM.
        options: more of vLLM's server.

    Returns:
        see `compared`, with versions.

    Raises:
        ValueError: no such environment; says why.
    """
    from llavit.evaluate import evaluate, evaluate_served, load_bench
    from llavit.loading import load_model

    python, facts = vllm_facts(vllm)
    if python is None:
        raise ValueError(facts["left out"])
    chosen = load_bench(bench, tasks)
    command = vllm_command(python, str(model), "float32", 8, True, options)
    with Server("served", command, ROOT / "runs" / "served-score.log", vllm_environment(threads)) as server:
        server.wait_ready(900)
        there = evaluate_served(server.url, chosen, baselines=(), limit=limit, requests=8)
    loaded, processor = load_model(str(model), dtype="float32")
    here = evaluate(loaded, processor, chosen, baselines=(), limit=limit)
    return {**compared(here, there), "vllm": facts, "environment": here["environment"]}


def compared(here: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """Set two results side by side, question by question.

    Returns:
        questions: how many; alike: how many have the same text; different_texts: how many texts there are at all;
        tasks: scores, here and there; differences: questions with both texts.
    """
    differences = []
    texts: set[str | None] = set()
    questions = 0
    for name, task in here["tasks"].items():
        for mine, theirs in zip(task["predictions"], there["tasks"][name]["predictions"], strict=True):
            questions += 1
            texts.add(mine["text"])
            if mine["text"] != theirs["text"]:
                differences.append(
                    {"task": name, "id": mine["id"], "here": mine["text"], "there": theirs["text"]}
                )
    return {
        "questions": questions,
        "alike": questions - len(differences),
        "different_texts": len(texts),
        "tasks": {
            name: {
                "fingerprint": task["fingerprint"],
                "items": task["items"],
                "here": task["score"],
                "there": there["tasks"][name]["score"],
            }
            for name, task in here["tasks"].items()
        },
        "differences": differences,
        "model": here["settings"]["model"],
        "decoding": here["settings"]["decoding"],
    }


if __name__ == "__main__":
    main()
