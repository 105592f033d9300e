"""A built task in lmms-eval's form, and its score; lmms-eval itself runs it in test_end_to_end.py."""

import json
import statistics

import pytest
import yaml
from PIL import Image

from llavit.evaluate.bench import bench_fingerprint, load_task
from llavit.evaluate.judge import judge, points
from llavit.evaluate.lmms.export import export_lmms_task
from llavit.evaluate.lmms.scoring import doc_to_visual, process_results, score, unparsed

datasets = pytest.importorskip("datasets", reason="tasks for lmms-eval are written with `datasets`")


def built(folder, metric="yes_no", group=None, rows=None):
    """Write a task in the form that the benchmark's builder gives it."""
    (folder / "images").mkdir(parents=True)
    rows = rows or [
        {"id": str(number), "question": f"Is {number} even?", "answer": "no" if number % 2 else "yes"}
        for number in range(4)
    ]
    for number, row in enumerate(rows):
        row.setdefault("image", f"images/{number}.png")
        row.setdefault("group", f"g{number // 2}" if group else None)
        if row["image"]:
            Image.new("RGBA", (9, 6), (number, 20, 30, 128)).save(folder / row["image"])
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "items.jsonl").write_text(text)
    about = {
        **{"id": "even@mine-2", "name": "even", "edition": "mine", "version": 2, "family": "general"},
        **{"metric": metric, "group": group, "chance": 0.5, "max_new_tokens": 5, "about": "Even: or\nnot?"},
        **{"seed": 0, "items": len(rows), "fingerprint": bench_fingerprint(folder, text.encode())},
    }
    (folder / "task.json").write_text(json.dumps(about))
    return folder


def docs(exported, cache):
    return datasets.load_dataset(
        "parquet", data_files=str(exported / "test.parquet"), split="train", cache_dir=str(cache)
    )


class _Loader(yaml.SafeLoader):
    """Reads lmms-eval's tag as the name behind it."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_the_yaml_states_the_task_and_functions_that_are_there(tmp_path):
    from importlib import import_module

    folder = export_lmms_task(built(tmp_path / "even"), tmp_path / "out")
    assert folder == tmp_path / "out" / "even@mine-2"
    made = yaml.load((folder / "even@mine-2.yaml").read_text(), _Loader)
    assert made["task"] == "even@mine-2" and made["metadata"] == {"version": 2}
    assert made["dataset_kwargs"] == {
        "data_files": {"test": "test.parquet"}
    }  # relative: the folder can be moved
    assert made["generation_kwargs"] == {"max_new_tokens": 5, "until": ["\n"], "do_sample": False}
    names = [made["doc_to_visual"], made["process_results"], *(m["aggregation"] for m in made["metric_list"])]
    for name in names:
        module, _, function = name.rpartition(".")
        assert callable(getattr(import_module(module), function))


def test_items_and_pictures_arrive_unchanged(tmp_path):
    rows = [
        {"id": "a", "question": "What?\nA. cat\nB. dog", "answer": "A", "options": ["cat", "dog"]},
        {"id": "b", "question": "Without a picture?", "answer": "B", "image": None, "accepted": ["b", "bee"]},
    ]
    source = built(tmp_path / "task", "choice", rows=rows)
    first, second = docs(export_lmms_task(source, tmp_path / "out"), tmp_path / "cache")
    assert (first["question"], first["options"], first["accepted"]) == (
        rows[0]["question"],
        ["cat", "dog"],
        [],
    )
    assert (second["answer"], second["accepted"], second["group"]) == ("B", ["b", "bee"], None)
    with Image.open(source / "images/0.png") as own:
        (picture,) = doc_to_visual(first)
        assert picture.mode == own.mode == "RGBA" and picture.tobytes() == own.tobytes()
    assert doc_to_visual(second) == []


SAID = {
    "yes_no": (["Yes.", "no", "yes", "perhaps"], ["yes", "no", "yes", "no"], None),
    "exact": (["a Cat", "three", "bird", "?"], ["cat", "3", "bee", "dog"], None),
    "relaxed": (["104", "red", "90", "1 2"], ["100", "red", "100", "1"], None),
    "choice": (["A", "(B)", "cat", "A or B"], ["A", "B", "A", "A"], ["cat", "dog"]),
    "caption": (
        ["a red cat", "two dogs", "", "a bus"],
        ["a red cat", "two birds", "a cup", "a big bus"],
        None,
    ),
}


@pytest.mark.parametrize("group", [None, "pair"])
@pytest.mark.parametrize("metric", SAID)
def test_the_score_is_that_of_our_own_judge(tmp_path, metric, group):
    said, answers, options = SAID[metric]
    rows = [
        {"id": str(n), "question": "?", "answer": answer, "options": options, "accepted": []}
        for n, answer in enumerate(answers)
    ]
    source = built(tmp_path / "task", metric, group, rows)
    task = load_task(source)
    exported = docs(export_lmms_task(source, tmp_path / "out"), tmp_path / "cache")
    results = [process_results(doc, [text]) for doc, text in zip(exported, said, strict=True)]
    marks = judge(task, said)
    own = statistics.fmean(points(task, marks))
    assert score([result["score"] for result in results]) == own
    assert own > 0, "the comparison could fail"
    by_hand = statistics.fmean(mark.status == "unparsed" for mark in marks)
    assert unparsed([result["unparsed"] for result in results]) == by_hand > 0
    json.dumps(results)  # lmms-eval writes them with the samples


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no task in .*nowhere: task.json is missing"):
        export_lmms_task(tmp_path / "nowhere", tmp_path / "out")
    source = built(tmp_path / "task")
    (source / "images/2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"picture that is not there: images/2\.png"):
        export_lmms_task(source, tmp_path / "out")
