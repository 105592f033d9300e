"""Reading answers out of free text."""

import pytest

from llavit.evaluate.reading import read_letter, read_number, read_yes_no

ANIMALS = ("dog", "cat", "bus stop", "red car")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        # the letter and nothing else
        *(
            ((form), "B")
            for form in ("B", "b", " B\n", "B.", "B)", "(B)", "[B]", "**B**", "'B'", "B:", "(b).")
        ),
        # stated
        *(
            (form, "B")
            for form in (
                "Answer: B",
                "The answer is B.",
                "the correct answer is (B)",
                "Option B",
                "answer: b",
            )
        ),
        *(
            (form, "B")
            for form in (
                "The answer would be B",
                "My choice: **B**",
                "The correct option is B because it purrs",
            )
        ),
        # a letter, a mark, and more
        *(
            (form, "B")
            for form in ("B. cat", "B) cat", "(B) cat", "B: cat", "B. It is a cat", "b) cat", "**B.** cat")
        ),
        # the text of an option
        *((form, "B") for form in ("cat", "Cat.", "a cat", "The cat!", "It is a cat.", "I see a cat")),
        ("A cat", "B"),
        ("a red car", "D"),
        ("There is a bus stop.", "C"),
        # a letter on its own in a sentence
        *(
            (form, "B")
            for form in ("I think B", "B because it purrs", "It must be B, I believe", "Letter B, a cat")
        ),
        ("A is right", "A"),
        ("A", "A"),
        ("a", "A"),
    ],
)
def test_a_choice_is_read(text, letter):
    assert read_letter(text, ANIMALS) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        ".",
        "A or B",
        "A, B",
        "A. dog\nB. cat",
        "Answer: A. Answer: B",
        "B. dog",  # letter and text disagree
        "B dog",
        "The answer is B, the dog",
        "E",  # no such option
        "E. horse",
        "not the cat",
        "It isn't a cat",
        "none of them",
        "dog and cat",
        "horse",
        "The answer is a horse",
        "I do see something",
        "Because",
        "scat",  # cat, but not as a word
        "1",
    ],
)
def test_what_chooses_nothing_or_two_things_is_not_answered(text):
    assert read_letter(text, ANIMALS) is None


@pytest.mark.parametrize(
    "text",
    [
        "Answer: A or B",
        "Answer: A/B",
        "Answer: A, B, C, D",
        "Answer: (A) or (B)",
        "Answer: **A**, **B**",
        "Answer: A) and B)",
        "Answer: A. or B.",
        "Answer: A and/or B",
        "Answer: A, or B",
        "Answer: A & B",
        "Answer: a or b",
        "Answer: b, a",
        "The answer is B or A",
        "Option A and C",
        "Answer: B or A because both purr",
    ],
)
def test_letters_listed_behind_a_stated_one_make_it_ambiguous(text):
    assert read_letter(text, ANIMALS) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: A, because it barks", "A"),
        ("Answer: A, a dog", "A"),
        ("Answer: A, A dog", "A"),
        ("Answer: B and that is why", "B"),
        ("Answer: B, and a fine one", "B"),
        ("Answer: B, a Siamese cat", "B"),
        ("Answer: B, A Cat", "B"),
        ("Answer: B, a 2-year-old", "B"),
        ("Answer: B, I believe", "B"),
        ("Answer: B, i think", "B"),
        ("Answer: B, I'm sure", "B"),
        ("Answer: B, e.g. a cat", "B"),
        ("Answer: B, i.e. the cat", "B"),
        ("Answer: B, D's neighbour", "B"),
        ("Answer: B, but it is hard to see", "B"),
        ("Answer: B or so it seems", "B"),
        ("Answer: B, B", "B"),
        ("Answer: B, (B) cat", "B"),
    ],
)
def test_words_behind_a_stated_letter_are_no_further_letters(text, letter):
    assert read_letter(text, ANIMALS) == letter


def test_an_option_that_holds_another_is_told_from_it():
    options = ("car", "red car", "car park", "tree")
    assert read_letter("It shows a red car.", options) == "B"
    assert read_letter("It shows a car.", options) == "A"
    assert read_letter("A car and a red car", options) is None


def test_options_that_are_letters_are_read_as_letters():
    assert read_letter("B", ("C", "A", "B", "D")) == "B"  # the prompt asks for the letter of the option
    assert (
        read_letter("B. A", ("C", "A", "B", "D")) is None or read_letter("B. A", ("C", "A", "B", "D")) == "B"
    )


def test_the_ninth_option_is_told_from_the_pronoun():
    nine = tuple(f"thing {number}" for number in range(9))
    for text in ("I", "Answer: I", "The answer is I.", "It must be option I"):
        assert read_letter(text, nine) == "I"
    assert read_letter("I think B", nine) == "B" == read_letter("It must be B, I believe", nine)
    assert read_letter("Answer: I", nine[:8]) is None


def test_options_of_equal_text_are_ambiguous():
    assert read_letter("3", ("three", "3", "4", "5")) is None
    assert read_letter("4", ("three", "3", "4", "5")) == "C"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        *(
            (form, "yes")
            for form in (
                "yes",
                "Yes.",
                "YES, it is",
                "yes there is no dog",
                "Answer: yes",
                "The answer is yes",
            )
        ),
        *(
            (form, "no")
            for form in ("no", "No!", "No, there are none", "no, yes would be wrong", "answer no")
        ),
        *(
            (form, None)
            for form in ("", "maybe", "yes or no", "Yes/no", "yes and no", "There is one", "nothing", "not")
        ),
        ("Answer: yes. Answer: no", None),
    ],
)
def test_yes_and_no_are_read_and_nothing_else(text, word):
    assert read_yes_no(text) == word


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", 12),
        ("12.", 12),
        ("-3.5", -3.5),
        (".5", 0.5),
        ("1,234,567.8", 1234567.8),
        ("$ 40", 40),
        ("40%", 40),
        ("about 12 units", 12),
        ("three", 3),
        ("The value is ten.", 10),
        ("2020 to 2024", None),
        ("", None),
        ("many", None),
        ("Q3", None),
        ("one two", None),
        ("two cats", 2),
        ("there is one", 1),
        ("The number of dozing cats is six", 6),
        ("minus 5", -5),
        ("negative $5", -5),
        ("1e3", 1000),
        ("-2.5E-3 m", -0.0025),
        ("1,250e2", 125000),
        ("5 euros", 5),
        ("5e", 5),
        ("²", None),
    ],
)
def test_the_one_number_is_read(text, number):
    assert read_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "twenty-one",
        "thirty two",
        "Forty-Five.",
        "one hundred",
        "a hundred and five",
        "two thousand",
        "three million",
        "minus five",
        "negative ten",
        "two and a half",
        "two dozen",
        "eleven or ten",
        "nineteen",
    ],
)
def test_a_number_in_words_beyond_ten_or_below_zero_is_not_read_as_another(text):
    assert read_number(text) is None
