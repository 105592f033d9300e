"""A small experiment on disk: the tiny models of tests/tiny.py, and questions about their pictures."""

import json
import os
import signal
from pathlib import Path

from llavit.compare.grid import load_grid
from llavit.compare.run import Experiment
from tests.processes import CONTEXT, exit_statuses

GRID = """
name: small
recipe: {recipe}
set: [stages.pretrain.save_every=1, stages.instruct.save_every=1, stages.pretrain.steps=3]
layers: {{single: -2, several: [1, 2], candidates: [1, 2]}}
llms:
  tiny: {{set: ['model.llm={llm}']}}
sizes:
  full: {{}}
  short: {{set: [stages.pretrain.steps=1, stages.instruct.steps=1]}}
evaluation: {{test: {test}, val: {val}, points: 2, mode: likelihood, baselines: [majority]}}
cells:
  - {{variants: [llava, llavit], seeds: [0, 1]}}
"""


def save_questions(pictures: Path, path: Path, count: int = 4) -> Path:
    """Write questions of three kinds, with answers in turn."""
    answers = {"colour": ("red", "blue"), "place": ("left", "right"), "word": ("iron", "lamp")}
    images = sorted(pictures.glob("*.png"))
    rows = [
        {
            "id": f"{kind}-{number}",
            "image": os.path.relpath(images[number % len(images)], path.parent),
            "question": f"Which {kind}, {number}?",
            "answer": words[number % 2],
            "task": kind,
        }
        for kind, words in answers.items()
        for number in range(count)
    ]
    path.write_text(json.dumps(rows))
    return path


def save_grid(tiny, folder: Path, more: str = "", grid: str = GRID) -> Path:
    """Write a grid over the tiny models, with further keys at its end."""
    folder.mkdir(parents=True, exist_ok=True)
    test = save_questions(tiny.data.parent, folder / "test.json")
    val = save_questions(tiny.data.parent, folder / "val.json", count=2)
    path = folder / "grid.yaml"
    path.write_text(grid.format(recipe=tiny.recipe_file, llm=tiny.llm, test=test, val=val) + more)
    return path


def experiment(grid: Path, folder: Path, **options) -> Experiment:
    """Open a grid in a folder."""
    return Experiment.at(load_grid(grid), folder, **options)


def run_in(
    grid: Path, folder: Path, *, processes: int = 1, kill: int | None = None, send=signal.SIGKILL
) -> list:
    """Run a grid in processes of their own.

    Args:
        grid: its file.
        folder: the experiment's.
        processes: how many, as torchrun would start them.
        kill: the training step, counted over all stages and cells, before which each process gets a signal.
        send: that signal.

    Returns:
        their exit statuses; what each ran is in `folder.ran-RANK`.
    """
    started = []
    for rank in range(processes):
        environment = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        if processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        arguments = (environment, str(grid), str(folder), kill, send, rank)
        started.append(CONTEXT.Process(target=_run, args=arguments))
        started[-1].start()
    return exit_statuses(started)


def _run(environment, grid, folder, kill, send, rank):
    import sys

    os.environ |= environment
    from llavit.compare import run as module
    from llavit.train.stopping import EXIT_STATUS, Stopped
    from llavit.train.trainer import LlavitTrainer

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    module._PATIENCE = 0.2
    taken = 0
    collect = LlavitTrainer.get_batch_samples

    def signalled(self, *args):
        nonlocal taken
        if taken == kill:
            os.kill(os.getpid(), send)
        taken += 1
        return collect(self, *args)

    LlavitTrainer.get_batch_samples = signalled
    try:
        ran = module.run_grid(experiment(Path(grid), Path(folder)), progress=False)
    except Stopped:
        sys.exit(EXIT_STATUS)
    Path(f"{folder}.ran-{rank}").write_text("\n".join(cell.name for cell in ran))
