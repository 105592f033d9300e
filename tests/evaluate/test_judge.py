"""Marks and points, against published numbers and the definitions."""

import random

import pytest

from llavit.evaluate.bench import BenchTask
from llavit.evaluate.caption import cider_d, noun_recall
from llavit.evaluate.items import Item
from llavit.evaluate.judge import judge, points


def task(metric, rows, group=None):
    """A task of (answer, accepted, options, group) rows; what is left out is empty."""
    items = []
    for number, row in enumerate(rows):
        answer, accepted, options, belongs = (*row, *(None,) * (4 - len(row)))
        items.append(
            Item(str(number), None, "?", answer, "t", options=options, accepted=accepted or (), group=belongs)
        )
    return BenchTask("t@x-1", "t", "general", metric, group=group, items=tuple(items))


def marks(metric, rows, texts):
    return [(mark.score, mark.status) for mark in judge(task(metric, rows), texts)]


def test_what_failed_and_what_cannot_be_read_scores_nothing_and_is_counted_by_its_name():
    options = ("cat", "dog")
    for metric, row, unreadable in (
        ("choice", ("A", (), options), "both"),
        ("yes_no", ("yes",), "perhaps"),
        ("exact", ("red",), " . "),
        ("relaxed", ("12",), "many"),
        ("anls", ("total",), " "),
        ("caption", ("a cat",), ""),
    ):
        found = marks(metric, [row, row, row], [row[0], unreadable, None])
        assert [status for _, status in found] == ["answered", "unparsed", "failed"]
        assert found[0][0] > 0 or metric == "caption"  # three equal captions have no rare words
        assert [score for score, _ in found[1:]] == [0, 0]


def test_an_accepted_answer_is_right():
    assert marks("exact", [("sofa", ("couch",))] * 3, ["Couch.", "a sofa", "chair"]) == [
        (1, "answered"),
        (1, "answered"),
        (0, "answered"),
    ]


def test_numbers_keep_their_minus_and_thousands_may_have_commas():
    texts = ["-4", "−4", "4", "-40"]
    assert [score for score, _ in marks("exact", [("-4",)] * 4, texts)] == [1, 1, 0, 0]
    assert [score for score, _ in marks("exact", [("1250",)] * 3, ["1,250", "1250.", "1,25"])] == [1, 1, 0]
    alike = (
        ("flip-flop", "flip flop"),
        ("3-5", "3 5"),
        ("covid-19", "covid 19"),
        ("1, 2, 3", "1 2 3"),
        ("3:05", "3 05"),
    )
    for right, text in alike:
        assert marks("exact", [(right,)], [text]) == [(1, "answered")]


def test_an_answer_of_punctuation_is_not_any_punctuation():
    found = marks("exact", [("+",)] * 4, ["+", " +\n", "-", ""])
    assert found == [(1, "answered"), (1, "answered"), (0, "unparsed"), (0, "unparsed")]


def test_relaxed_accuracy_takes_five_per_cent_and_no_more():
    texts = ["100", "105", "95", "105.1", "94.9", "about 103 units"]
    assert [score for score, _ in marks("relaxed", [("100",)] * 6, texts)] == [1, 1, 1, 0, 0, 1]
    assert marks("relaxed", [("-40",)] * 2, ["-42", "42"]) == [(1, "answered"), (0, "answered")]
    assert marks("relaxed", [("0",)] * 2, ["0", "0.01"]) == [(1, "answered"), (0, "answered")]
    assert marks("relaxed", [("Peru",)] * 2, ["peru", "Chile"]) == [(1, "answered"), (0, "answered")]


def test_an_answer_that_merely_holds_a_number_is_compared_as_words():
    """ChartQA's rule: a tolerance for answers that are numbers; "June 2019" is not within 5 % of "May 2019"."""
    for right, wrong in (("May 2019", "June 2019"), ("Group 3", "Team 3"), ("18-29", "18"), ("Q3", "Q2")):
        assert marks("relaxed", [(right,)] * 2, [f"{right}.", wrong]) == [(1, "answered"), (0, "answered")]
    assert (
        marks("relaxed", [("$1,250",), ("40 %",), ("-$4",), ("three",)], ["1200", "41", "-4", "3"])
        == [(1, "answered")] * 4
    )
    assert marks("relaxed", [("12", ("a dozen",))] * 3, ["A dozen.", "12.1", "a score"]) == [
        (1, "answered"),
        (1, "answered"),
        (0, "unparsed"),
    ]


@pytest.mark.parametrize(
    ("right", "text", "score"),
    [
        (("Hello World",), "hello world", 1),
        (("hello world",), "hello wrold", 1 - 2 / 11),  # the two examples of the metric's own documentation
        (("hello world", "bye"), "byes", 0.75),
        (("hello world",), "something else", 0),  # below one half
        (("abcd",), "ab", 0.5),
    ],
)
def test_anls_is_one_minus_the_share_of_edits_or_nothing_below_one_half(right, text, score):
    (mark,) = judge(task("anls", [(right[0], right[1:])]), [text])
    assert mark.score == pytest.approx(score)


CAPTIONS = [
    "a red cat sits on a mat",
    "two dogs play in the park",
    "a man",
    "a blue bird on a branch of a tree",
]
REFERENCES = [
    ["a red cat is sitting on a mat", "a cat on a mat"],
    ["dogs are playing in a park", "two dogs play in the green park"],
    ["a man rides a horse", "a horse and a man"],
    ["a blue bird on a branch of a tree"],
]


def test_cider_d_is_that_of_the_coco_captions_code():
    """Numbers computed with pycocoevalcap 1.2 (CiderScorer, n=4, sigma=6) on these very captions."""
    assert cider_d(CAPTIONS, REFERENCES) == pytest.approx(
        [3.52123559, 4.26493946, 2.37689569, 10.0], abs=1e-7
    )


@pytest.mark.extras
def test_cider_d_equals_the_package():
    scorer = pytest.importorskip(
        "pycocoevalcap.cider.cider_scorer", reason="an independent computation, of 104 MB: make test-extras"
    )
    rng = random.Random(0)
    words = ["a", "red", "blue", "cat", "dog", "on", "the", "mat", "park", "with", "two"]
    captions = [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(40)]
    references = [[" ".join(rng.choices(words, k=6)) for _ in range(rng.randint(1, 3))] for _ in captions]
    theirs = scorer.CiderScorer(n=4, sigma=6.0)
    for caption, of_one in zip(captions, references, strict=True):
        theirs += (caption, of_one)
    assert cider_d(captions, references) == pytest.approx(list(theirs.compute_score()[1]))


def test_noun_recall_counts_words_and_not_their_parts():
    assert noun_recall("a catalogue of cars", ("cat", "car")) == 0.5
    assert noun_recall("", ("cat",)) == 0
    rows = [("a cat on a sofa", ("cat", "sofa|couch")), ("a dog", ("dog",))]
    recalls = [
        mark.more["noun_recall"] for mark in judge(task("caption", rows), ["cats on the couch", "a tree"])
    ]
    assert recalls == [1, 0]
    stated = Item("1", None, "?", "a sofa", "t", accepted=("sofa",), truth={"nouns": [["sofa", "couch"]]})
    captions = BenchTask("t@x-1", "t", "anchor", "caption", items=(stated,))
    assert judge(captions, ["a couch"])[0].more["noun_recall"] == 1


def test_a_group_counts_only_if_all_its_items_are_right():
    rows = [("yes", (), None, group) for group in ("a", "a", "b", "b", None)]
    paired = task("yes_no", rows, group="pair")
    assert points(paired, judge(paired, ["yes", "yes", "yes", "no", "yes"])) == [1, 0, 1]
    assert points(paired, judge(paired, ["yes", "yes", "yes", None, "no"])) == [1, 0, 0]


def test_the_same_letter_four_times_is_worth_nothing_in_circular_evaluation():
    rows = [(letter, (), ("w", "x", "y", "z"), "g") for letter in "BADC"]
    circular = task("choice", rows, group="circular")
    assert points(circular, judge(circular, ["B"] * 4)) == [0]
    assert points(circular, judge(circular, list("BADC"))) == [1]


def test_there_is_a_text_to_each_item():
    with pytest.raises(ValueError, match="each of 1 items, got 2"):
        judge(task("exact", [("a",)]), ["a", "b"])
