"""The whole path through lmms-eval, in its own environment and by its own command line, with local data only.

`make test-lmms` makes that environment and names its interpreter in LMMS_PYTHON.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from llavit.data import Collator
from llavit.evaluate import evaluate, load_bench
from llavit.evaluate.lmms.export import export_lmms_task
from llavit.evaluate.lmms.paper import PAPER
from llavit.starter.bench.build import build_bench

LMMS_PYTHON = os.environ.get("LMMS_PYTHON", "")
TASKS = ("mini-pope", "mini-mmb", "mini-ocrbench")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LMMS_PYTHON, reason="lmms-eval has an environment of its own: make test-lmms"),
]


def lmms_python(*arguments, home: Path, check: bool = True) -> subprocess.CompletedProcess:
    """Run the interpreter of lmms-eval's environment, without a hub."""
    env = {
        **os.environ,
        "PYTHONPATH": "",  # llavit as it is installed there, entry point included
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run([LMMS_PYTHON, *arguments], env=env, capture_output=True, text=True, timeout=600)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def learn_by_heart(model, processor, tasks, steps: int = 60, rate: float = 1e-2) -> None:
    """Teach a tiny model some answers, so that it gets some questions right and others wrong."""
    torch.manual_seed(0)
    items = [item for task in tasks for item in task.items if task.metric in ("yes_no", "exact")]
    collate = Collator(processor.tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    for step in range(steps):
        batch = [items[(step * 16 + place) % len(items)] for place in range(16)]
        turns = [
            [*item.messages(), {"role": "assistant", "content": [{"type": "text", "text": item.answer}]}]
            for item in batch
        ]
        padded = collate([processor.encode(turn, return_labels=True) for turn in turns])
        inputs = {key: padded[key] for key in ("input_ids", "attention_mask", "pixel_values", "labels")}
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A model, tasks of the starter benchmark in lmms-eval's form, and our own runner's result on them."""
    folder = tmp_path_factory.mktemp("lmms")
    build_bench(folder / "bench", TASKS, items=24, workers=1)
    for name in TASKS:
        export_lmms_task(folder / "bench" / name, folder / "exported")
    tasks = load_bench(folder / "bench")
    model, processor = tiny.build()
    learn_by_heart(model, processor, tasks)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    own = evaluate(model, processor, tasks, baselines=())
    return folder, own["tasks"]


@pytest.fixture(scope="module")
def theirs(made):
    """lmms-eval's results and samples, by its command line as a user calls it."""
    folder, own = made
    lmms_python(
        *(
            "-m",
            "lmms_eval",
            "--model",
            "llavit",
            "--model_args",
            f"pretrained={folder / 'model'},dtype=float32",
        ),
        *("--include_path", str(folder / "exported"), "--tasks", ",".join(own), "--batch_size", "5"),
        *("--output_path", str(folder / "out"), "--log_samples", "--verbosity", "DEBUG"),
        home=folder / "home",
    )
    (results,) = (folder / "out").glob("*/*_results.json")
    files = {task: next((folder / "out").glob(f"*/*_samples_{task}.jsonl")) for task in own}
    samples = {
        task: [json.loads(line) for line in file.read_text().splitlines()] for task, file in files.items()
    }
    return json.loads(results.read_text())["results"], samples


def test_lmms_eval_gives_the_score_of_our_own_runner(made, theirs):
    results, _ = theirs
    scores = {task: results[task]["score,none"] for task in made[1]}
    assert scores == pytest.approx({task: result["score"] for task, result in made[1].items()}, abs=1e-6)
    assert any(0 < score < 1 for score in scores.values()), scores


def test_lmms_eval_gets_the_answers_of_our_own_runner(made, theirs):
    for task, result in made[1].items():
        own = {row["id"]: row["text"] for row in result["predictions"]}
        assert {sample["score"]["id"]: sample["score"]["text"] for sample in theirs[1][task]} == own


def test_a_score_can_be_counted_by_hand(theirs):
    results, samples = theirs
    rows = [sample["score"] for sample in samples["mini-pope@starter-1"]]
    right = [row["text"].lower().strip(".") == row["answer"] for row in rows]
    assert results["mini-pope@starter-1"]["score,none"] == pytest.approx(sum(right) / len(right))


def test_two_processes_share_the_work_and_give_the_score_of_one(made, theirs, monkeypatch):
    folder, own = made
    task = next(name for name in own if 0 < theirs[0][name]["score,none"] < 1)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    lmms_python(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lmms_eval"),
        *("--model", "llavit", "--model_args", f"pretrained={folder / 'model'},dtype=float32"),
        *("--include_path", str(folder / "exported"), "--tasks", task, "--verbosity", "DEBUG"),
        *("--output_path", str(folder / "two"), "--log_samples"),
        home=folder / "home",
    )
    (results,) = (folder / "two").glob("*/*_results.json")
    assert json.loads(results.read_text())["results"][task]["score,none"] == theirs[0][task]["score,none"]
    (samples,) = (folder / "two").glob("*/*_samples_*.jsonl")
    assert len(samples.read_text().splitlines()) == own[task]["items"]


def test_the_suite_keeps_lmms_evals_results_and_goes_on_where_it_stopped(made, theirs):
    folder, own = made
    code = (
        "import json, sys; from llavit.evaluate.lmms import run_suite; model, tasks, exported, out = sys.argv[1:];"
        "lines = []; found = run_suite(model, 'paper', output=out, tasks=tasks, include_path=exported,"
        "dtype='float32', batch_size=3, report=lines.append); json.dump([lines, found], open(out + '/seen', 'w'))"
    )
    one, two = list(own)[:2]
    arguments = [str(folder / part) for part in ("exported", "suite")]
    for tasks in (one, f"{one},{two},pope"):
        lmms_python("-c", code, str(folder / "model"), tasks, *arguments, home=folder / "home")
        lines, found = json.loads((folder / "suite" / "seen").read_text())
        if tasks == one:
            first = found["tasks"][one]
    assert found["tasks"][one] == first, "not run again"
    assert found == json.loads((folder / "suite" / "paper.json").read_text())
    for task in (one, two):
        entry = found["tasks"][task]
        assert entry["status"] == "done" and entry["scores"]["score"] == theirs[0][task]["score,none"]
        assert entry["prompt"] == own[task]["prompt"]
        assert entry["decoding"]["until"] == ["\n"] and entry["lmms_eval"]["configs"][task]["task"] == task
        assert (
            len((folder / "suite" / "tasks" / f"{task}.jsonl").read_text().splitlines()) == entry["samples"]
        )
    assert found["tasks"]["pope"] == {
        "status": "needs the hub",
        "dataset": "lmms-lab-encoder/POPE",
        "family": "general",
    }
    assert found["not_run"] == ["pope"] and "needs the hub (data set lmms-lab-encoder/POPE)" in lines[-1]
    again = lmms_python(
        *("-c", code.replace("'float32'", "'auto'"), str(folder / "model"), one, *arguments),
        home=folder / "home",
        check=False,
    )
    assert "with other settings (dtype)" in again.stderr


def test_the_whole_paper_suite_says_what_it_needs_without_a_hub(made):
    folder, _ = made
    code = (
        "import sys; from llavit.evaluate.lmms import run_suite;"
        "found = run_suite(sys.argv[1], output=sys.argv[2], report=print); assert len(found['not_run']) == 16"
    )
    said = lmms_python("-c", code, str(folder / "model"), str(folder / "paper"), home=folder / "home").stdout
    for task in PAPER:
        assert f"{task.name}: not run, needs the hub (data set {task.dataset})" in said


def test_a_request_that_fails_gives_no_score(made, tmp_path):
    """A picture that cannot be decoded: lmms-eval alone stops, the suite states the row and goes on."""
    from datasets import load_dataset

    folder, own = made
    bad, good = list(own)[:2]
    for task in (bad, good):
        (tmp_path / "tasks" / task).mkdir(parents=True)
        for file in (folder / "exported" / task).iterdir():
            (tmp_path / "tasks" / task / file.name).write_bytes(file.read_bytes())
    parquet = tmp_path / "tasks" / bad / "test.parquet"
    rows = load_dataset("parquet", data_files=str(parquet), split="train", cache_dir=str(tmp_path / "cache"))
    from datasets import Image

    broken = rows.cast_column("image", Image(decode=False)).map(
        lambda row, place: {
            "image": {"bytes": b"none" if place == 3 else row["image"]["bytes"], "path": None}
        },
        with_indices=True,
    )
    broken.cast_column("image", Image()).to_parquet(str(parquet))
    code = (
        "import json, sys; from llavit.evaluate.lmms import run_suite; model, tasks, exported, out = sys.argv[1:];"
        "found = run_suite(model, output=out, tasks=tasks, include_path=exported);"
        "json.dump(found, open(out + '/seen', 'w'))"
    )
    lmms_python(
        *("-c", code, str(folder / "model"), f"{bad},{good}", str(tmp_path / "tasks"), str(tmp_path / "out")),
        home=folder / "home",
    )
    found = json.loads((tmp_path / "out" / "seen").read_text())
    assert found["tasks"][bad]["status"] == "failed" and "scores" not in found["tasks"][bad]
    assert f"{bad}/test/3" in found["tasks"][bad]["error"], found["tasks"][bad]["error"]
    assert found["tasks"][good]["status"] == "done" and found["not_run"] == [bad]


def test_the_table_of_the_paper_suite_is_that_of_lmms_eval(made):
    code = (
        "import json; from lmms_eval.tasks import TaskManager; from lmms_eval import utils;"
        "index = TaskManager('ERROR').task_index;"
        "from llavit.evaluate.lmms import SUITES;"
        "configs = {t.name: utils.load_yaml_config(index[t.name]['yaml_path'], mode='simple')"
        " for t in SUITES['paper']};"
        "print(json.dumps({name: [c['dataset_path'], c['output_type'], c.get('generation_kwargs'),"
        "[m['metric'] for m in c['metric_list']]] for name, c in configs.items()}, default=str))"
    )
    stated = json.loads(lmms_python("-c", code, home=made[0] / "home").stdout.splitlines()[-1])
    for task in PAPER:
        dataset, output_type, kwargs, metrics = stated[task.name]
        assert dataset == task.dataset and output_type == "generate_until", task.name
        assert set(task.metrics) <= set(metrics), task.name
        assert not (kwargs or {}).get("temperature"), "greedy"
