"""What the training engine gains the demo: seconds per step with and without it, in turn on one machine.

    .venv/bin/python benchmarks/demo_engine.py runs/demo/data docs/benchmarks/demo_engine.json

Both ways train the demo's stages on the same samples. The plain way computes tower features in every step, pads
every sample to the longest, holds frozen weights in float32 and leaves attention to sdpa.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from llavit.demo import fitted
from llavit.evaluate.environment import environment
from llavit.train import load_recipe, train
from llavit.train.progress import STEP_LOG, read_step_log

STEPS, ROUNDS, WARM_UP = 6, 1, 2
WAYS = {
    "plain": [
        "feature_cache=null",
        "attention=sdpa",
        "stages.0.pack_length=null",
        "stages.0.frozen_dtype=float32",
        "stages.1.pack_length=null",
    ],
    "engine": ["feature_cache={cache}"],
}


def seconds_per_step(way: str, data: Path, cache: Path) -> dict[str, list[float]]:
    """Train both stages for a few steps; give the seconds of each step after the first ones."""
    overrides = [override.format(cache=cache) for override in WAYS[way]]
    recipe = load_recipe("demo", [*overrides, f"stages.0.steps={STEPS}", f"stages.1.steps={STEPS}"])
    with tempfile.TemporaryDirectory() as folder:
        train(fitted(recipe, data), output=folder, progress=False)
        logs = {stage.name: read_step_log(Path(folder) / stage.name / STEP_LOG) for stage in recipe.stages}
    return {stage: [row["seconds"] for row in rows[WARM_UP:]] for stage, rows in logs.items()}


def main(data: Path, out: Path) -> None:
    """Measure in turn and write the medians and their ratio."""
    seconds: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(ROUNDS):
            for way in sorted(WAYS, reverse=bool(number % 2)):
                for stage, values in seconds_per_step(way, data, Path(cache)).items():
                    seconds[way].setdefault(stage, []).extend(values)
    result = {
        stage: {
            **{f"{way}_median_seconds": round(statistics.median(seconds[way][stage]), 3) for way in WAYS},
            "ratio": round(
                statistics.median(seconds["plain"][stage]) / statistics.median(seconds["engine"][stage]), 2
            ),
        }
        for stage in seconds["plain"]
    }
    made = {
        "command": f"python benchmarks/demo_engine.py {data} {out}",
        "steps": f"{ROUNDS} rounds of {STEPS} steps of 8 samples, the first {WARM_UP} of each left out",
        "plain": WAYS["plain"],
        **environment(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**result, "made": made}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
