"""The same tasks with the pictures of the full edition: other sources, other identities, the same promises."""

import pytest

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")

from llavit.starter.bench.build import build_bench
from llavit.starter.bench.registry import TASKS
from llavit.starter.concepts import held_out
from llavit.starter.gallery import open_gallery
from llavit.starter.kit import Sample
from llavit.starter.packages import missing_packages
from tests.starter.bench.blind import assert_blind_is_at_chance
from tests.starter.bench.samples import COMPOSED
from tests.starter.bench.test_guessing import TOLERANCE, chance

pytestmark = pytest.mark.skipif(
    bool(missing_packages()), reason="npm and Debian packages that `llavit starter build --full` fetches"
)


def made(name: str, number: int, split: str = "test", seed: int = 0) -> list[Sample]:
    gallery = open_gallery("full")
    return [s for n in range(number) for s in TASKS[name].samples(gallery, n, split, seed)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("mini-mme", {"fluent", "game-icons"}),
        ("mini-mmb", {"art4apps", "gcompris"}),
        ("mini-gqa", {"tuxpaint", "game-icons"}),
        ("mini-pope", {"openmoji"}),
        ("mini-realworld", {"tuxpaint"}),
        ("mini-cv2d", {"game-icons"}),
        ("caption-wild", {"tuxpaint", "art4apps", "gcompris"}),
    ],
)
def test_a_test_is_drawn_from_its_own_sources_which_training_never_shows(name: str, sources: set[str]):
    samples = made(name, 24)
    assert {thing["source"] for s in samples for thing in s.truth["objects"]} <= sources
    assert all(s.unseen_style for s in samples)
    assert all({held_out(thing) for thing in s.names} == {s.unseen_concept} for s in samples)


def test_training_pictures_of_every_task_show_nothing_held_out():
    for name in (*COMPOSED, "caption-wild"):
        for sample in made(name, 6, "train"):
            assert not sample.unseen_style and not sample.unseen_concept, name


def test_the_edition_is_part_of_the_identity_and_names_its_packages(tmp_path):
    import json

    (folder,) = build_bench(tmp_path, "mini-cv2d", "full", items=2)
    about = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    assert about["id"] == "mini-cv2d@full-1" and about["sources"] == ["game-icons"]
    assert about["packages"]["@iconify-json/game-icons"] == "1.2.4"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPOSED)
def test_neither_majority_nor_words_of_the_question_beat_chance(name: str):
    test, train = ([s.ask for s in made(name, 300, seed=seed)] for seed in (0, 1))
    assert_blind_is_at_chance(TASKS[name].metric, train, test, chance(name) + TOLERANCE)
