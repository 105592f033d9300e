"""benchmarks/learned_by_kind.py: kinds of questions, and what a model knows of them."""

import pytest

from benchmarks.learned_by_kind import kind_of, known
from llavit.data import open_reader
from llavit.starter.phrases import PHRASES
from tests.tiny import save_data


@pytest.mark.parametrize("kind", PHRASES)
def test_a_question_is_of_the_kind_of_its_phrasing(kind):
    for phrase in PHRASES[kind]:
        words = {
            name: "cat" for name in ("thing", "other", "things", "options", "name", "label", "side", "colour")
        }
        found = kind_of(phrase.format_map(_Any(words)))
        assert found == kind or phrase in PHRASES[found]


class _Any(dict):
    def __missing__(self, key):
        return "cat"


def test_answers_are_counted_by_kind_and_a_right_one_is_the_likeliest(tiny, tmp_path):
    model, processor = tiny.build()
    reader = open_reader(str(save_data(tmp_path)))
    rows = [reader.sample(index).messages for index in (0, 1, 3)]
    found = known(model, processor, rows)
    (only,) = found.values()
    assert only["answers"] == 3 and only["loss"] > 0 and 0 <= only["right"] <= 1
