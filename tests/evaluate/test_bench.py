"""Reading a benchmark off disk."""

import json

import pytest

from llavit.evaluate.bench import BenchTask, bench_fingerprint, load_bench, load_task
from llavit.evaluate.items import Item
from tests.evaluate.small_bench import save_bench


@pytest.fixture
def folder(tmp_path):
    return save_bench(tmp_path / "bench")


def test_tasks_come_family_by_family_and_by_name_or_family(folder):
    assert [task.name for task in load_bench(folder)] == [
        "short",
        "turned",
        "numbers",
        "forms",
        "pairs",
        "captions",
    ]
    assert [task.name for task in load_bench(folder, "general,forms")] == ["short", "turned", "forms"]
    with pytest.raises(ValueError, match=r"unknown tasks \['shorts'\].*'short'"):
        load_bench(folder, ["shorts"])
    with pytest.raises(FileNotFoundError, match="no benchmark in"):
        load_bench(folder / "absent")


def test_an_optional_task_comes_by_its_name_only(folder):
    path = folder / "short/task.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "optional": True}))
    assert "short" not in {task.name for task in load_bench(folder, "all,general")}
    assert [task.name for task in load_bench(folder, "short")] == ["short"]


def test_an_item_has_all_that_its_row_states(folder):
    task = load_task(folder / "turned")
    item = task.items[-1]
    assert (task.id, task.metric, task.group, task.made["edition"]) == (
        "turned@small-1",
        "choice",
        "circular",
        "small",
    )
    assert item.image == folder / "turned/images/00002.png" and item.options == (
        "orange",
        "red",
        "blue",
        "green",
    )
    assert (item.answer, item.group, item.unseen) == ("D", "c2", {"concept"})
    assert load_task(folder / "numbers").items[-1].image is None
    assert load_task(folder / "short").items[0].accepted == ("red dot",)


def test_files_that_changed_since_the_task_was_written_are_refused(folder):
    (folder / "short/images/00000.png").write_bytes((folder / "short/images/00001.png").read_bytes())
    with pytest.raises(ValueError, match=r"not those that task\.json was written for"):
        load_task(folder / "short")
    assert len(load_task(folder / "short", check=False).items) == 8
    (folder / "short/images/00000.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"images/00000\.png"):
        load_task(folder / "short")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "taste"}, "expected a metric"),
        ({"group": "trio"}, "expected a group"),
        ({"name": None}, "missing"),
    ],
)
def test_a_task_that_states_what_nobody_knows_is_refused(folder, change, message):
    path = folder / "short/task.json"
    about = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in about.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        load_task(folder / "short")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "turned",
            {"answer": "red"},
            r"item turned-0: expected an answer to choice out of \['A', .*got 'red'",
        ),
        ("turned", {"answer": "a"}, "got 'a'"),
        ("turned", {"options": None}, r"out of \[\], got 'A' with options None"),
        (
            "pairs",
            {"answer": "true"},
            r"item pairs-0: expected an answer to yes_no out of \['yes', 'no'\], got 'true'",
        ),
        ("short", {"image": ...}, r"line 1: the fields \['image'\] are missing"),
    ],
)
def test_an_item_that_no_answer_can_be_right_for_is_refused(folder, name, change, message):
    """Else all answers to it score 0, as "answered" or "unparsed"."""
    path = folder / name / "items.jsonl"
    first, *others = path.read_text().splitlines()
    row = {key: value for key, value in {**json.loads(first), **change}.items() if value is not ...}
    path.write_text("\n".join([json.dumps(row), *others]) + "\n")
    with pytest.raises(ValueError, match=message):
        load_task(folder / name, check=name == "short")  # a field is missed before files are compared


def test_a_line_separator_within_a_question_ends_no_row(folder):
    about = json.loads((folder / "short/task.json").read_text())
    rows = [json.loads(line) for line in (folder / "short/items.jsonl").read_text().splitlines()]
    rows[0]["question"] = "Which?\u2028Answer in a word."
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (folder / "short/items.jsonl").write_bytes(text)
    about["fingerprint"] = bench_fingerprint(folder / "short", text)
    (folder / "short/task.json").write_text(json.dumps(about))
    assert load_task(folder / "short").items[0].question == rows[0]["question"]


def test_a_limit_keeps_groups_whole(folder):
    task = load_task(folder / "turned")
    assert [len(task.first(count).items) for count in (1, 4, 5, 99)] == [4, 4, 8, 12]
    assert task.units() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_two_items_of_one_id_are_refused():
    with pytest.raises(ValueError, match="'1' occurs more than once"):
        BenchTask("t@x-1", "t", "general", "exact", items=(Item("1", None, "?", "a", "t"),) * 2)


def test_the_starter_builds_what_evaluation_reads(tmp_path):
    from PIL import Image

    from llavit.starter.bench import build as building
    from llavit.starter.bench.task import Task
    from llavit.starter.kit import Ask, Sample, lettered

    def one(kit):
        return [
            Sample(Image.new("RGB", (8, 8), "red"), lettered("Which?", ["red", "blue", "tan", "grey"], "red"))
        ]

    def two(kit):
        colours = ("red", "blue")
        return [
            Sample(Image.new("RGB", (8, 8), c), Ask("Red?", "yes" if c == "red" else "no")) for c in colours
        ]

    class Gallery:
        edition = "starter"

    tasks = {
        "circles": Task("circles", "general", "choice", one, "", group="circular", items=3),
        "pairs": Task("pairs", "general", "yes_no", two, "", group="pair", items=4),
    }
    for task in tasks.values():
        settings = building._settings(task, "starter", None, 0, "test")
        building._build(task, tmp_path, settings, Gallery(), lambda count: None)
    loaded = {task.name: task for task in load_bench(tmp_path)}
    assert loaded["circles"].id == "circles@starter-1"
    assert [len(loaded[name].units()) for name in tasks] == [3, 2]
    assert [item.answer for item in loaded["circles"].items[:4]] == ["A", "D", "C", "B"]
