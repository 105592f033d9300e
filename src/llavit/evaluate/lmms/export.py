"""A built task of ours as a task of lmms-eval's: its YAML and a Parquet file, local data only.

    OUT/ID/ID.yaml        what lmms-eval reads (`--include_path OUT`, `--tasks ID`)
    OUT/ID/test.parquet   the items, pictures included

The score is ours: the YAML names the functions of `llavit.evaluate.lmms.scoring`. The folder can be moved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_YAML = """\
# {about}
# Written by llavit out of {id}, fingerprint {fingerprint}.
task: {task}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: test.parquet
test_split: test
output_type: generate_until
doc_to_visual: !function llavit.evaluate.lmms.scoring.doc_to_visual
doc_to_text: question
doc_to_target: answer
process_results: !function llavit.evaluate.lmms.scoring.process_results
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  until: ["\\n"]  # an answer is its first line, as in `llavit eval`
  do_sample: false
metric_list:
  - metric: score
    aggregation: !function llavit.evaluate.lmms.scoring.score
    higher_is_better: true
  - metric: unparsed
    aggregation: !function llavit.evaluate.lmms.scoring.unparsed
    higher_is_better: false
metadata:
  version: {version}
"""


def export_lmms_task(task_folder: str | Path, out: str | Path) -> Path:
    """Write a built task in lmms-eval's form.

    Args:
        task_folder: holds task.json, items.jsonl and pictures.
        out: folder for any number of such tasks: lmms-eval's `--include_path`.

    Returns:
        the task's folder in `out`; its name is the task's id, which lmms-eval knows it by.

    Raises:
        FileNotFoundError: no task lies in the folder, or a picture is missing.
        ImportError: the package `datasets` is missing.

    Example:
        folder = export_lmms_task("runs/bench/mini-mme", "runs/lmms")
        # python -m lmms_eval --model llavit --model_args pretrained=MODEL \\
        #     --include_path runs/lmms --tasks mini-mme@starter-1
    """
    try:
        from datasets import Dataset, Features, Image, Value
    except ImportError as error:
        raise ImportError(
            "tasks for lmms-eval are written with `datasets`: pip install 'llavit[data]'"
        ) from error

    source = Path(task_folder)
    try:
        about = json.loads((source / "task.json").read_text(encoding="utf-8"))
        lines = (source / "items.jsonl").read_bytes().splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no task in {source}: {Path(error.filename).name} is missing") from None
    stated = {key: about.get(key) for key in ("id", "name", "family", "metric", "group", "chance")}
    rows = [_row(json.loads(line), source, json.dumps(stated)) for line in lines]
    text = Value("string")
    features = Features(
        {
            "id": text,
            "image": Image(),
            "question": text,
            "answer": text,
            "accepted": [text],
            "options": [text],
            "group": text,
            "bench": text,
        }
    )
    folder = Path(out) / about["id"]
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(str(folder / "test.parquet"))
    (folder / f"{about['id']}.yaml").write_text(
        _YAML.format(
            about=" ".join(str(about.get("about", "")).split()),
            id=about["id"],
            fingerprint=about["fingerprint"],
            task=json.dumps(about["id"]),
            max_new_tokens=int(about["max_new_tokens"]),
            version=json.dumps(about.get("version", 1)),
        ),
        encoding="utf-8",
    )
    return folder


def _row(row: dict[str, Any], source: Path, bench: str) -> dict[str, Any]:
    image = None
    if row.get("image"):
        path = source / row["image"]
        if not path.is_file():
            raise FileNotFoundError(
                f"{source / 'items.jsonl'} names a picture that is not there: {row['image']}"
            )
        image = {"bytes": path.read_bytes(), "path": None}
    return {
        "id": row["id"],
        "image": image,
        "question": row["question"],
        "answer": str(row["answer"]),
        "accepted": [str(one) for one in row.get("accepted") or ()],
        "options": list(row.get("options") or ()),
        "group": row.get("group"),
        "bench": bench,
    }
