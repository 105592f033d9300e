"""Brief questions: nothing to guess from, nothing that cannot be known."""

import json
from pathlib import Path

import pytest

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")

from llavit.starter.concepts import few, pool
from llavit.starter.corpus import Corpus, build_corpus
from llavit.starter.phrases import INSTRUCTION


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    kinds = {"name": 1, "colour": 1, "place": 1, "size": 1, "count": 1, "word": 1, "chart": 1, "relation": 1}
    return build_corpus(
        tmp_path_factory.mktemp("brief"),
        pretrain=0,
        instruct=80,
        val=0,
        test=160,
        kinds=kinds,
        vocabulary=36,
        brief=True,
        workers=1,
    )


def load(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_conversations_hold_no_yes_or_no_no_options_and_no_instruction(brief: Corpus):
    for record in load(brief.instruct):
        turns = [turn["value"] for turn in record["conversations"]]
        assert turns[0].startswith("<image>\n") and len(turns) >= 2
        assert not {"yes", "no"} & set(turns[1::2])
        assert not any(INSTRUCTION in turn or " or " in turn.replace("small or large", "") for turn in turns)


def test_the_test_asks_each_kind_and_only_for_names_that_training_shows(brief: Corpus):
    items = load(brief.test)
    kinds = {item["scene"]["kind"] for item in items}
    assert kinds == {"name", "colour", "place", "size", "count", "word", "chart", "relation"}
    assert not any(item["options"] or item["answer"] in ("yes", "no") for item in items)
    known = {concept.name for concept in few(36)}
    names = [item["answer"] for item in items if item["task"] == "name"]
    assert names and set(names) <= known
    unseen = {concept.name for concept in pool(unseen=True)}
    shown = {thing["name"] for item in items for thing in item["scene"]["objects"]}
    assert unseen & shown  # places and counts are asked of things never shown before
