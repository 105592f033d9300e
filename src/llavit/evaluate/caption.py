"""Score captions: CIDEr-D against references, and the share of nouns that a caption names.

CIDEr-D is that of Vedantam et al. 2015 (arXiv 1411.5726), as the COCO caption evaluation computes it: the test's own
references give the document frequencies. Its package (`pycocoevalcap`) is 104 MB of Java beside the 200 lines that are
needed here, so they are here, and held to its numbers by a test. Captions are compared by `words`: lower case without
punctuation, where COCO's Java tokeniser splits at punctuation.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Sequence

_LONGEST = 4  # words of an n-gram
_SIGMA = 6.0

_Vector = list[dict[tuple[str, ...], float]]


def words(caption: str) -> list[str]:
    """Return the words of a caption in lower case, without punctuation.

    Example:
        >>> words("A dog, and a cat.")
        ['a', 'dog', 'and', 'a', 'cat']
    """
    return caption.lower().translate(str.maketrans(string.punctuation, " " * len(string.punctuation))).split()


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the CIDEr-D of each caption; the corpus' score is their mean.

    Args:
        captions: one for each picture.
        references: of each picture, at least one.

    Returns:
        from 0 to 10, 10 for a caption equal to its only reference, as COCO's code gives it; papers print a hundredfold
        ("CIDEr 120" is 1.2 here).

    Raises:
        ValueError: not one set of references for each caption, or an empty set.

    Example:
        >>> cider_d(["a red cat", "a dog"], [["a red cat"], ["two birds"]])[1]
        0.0
    """
    if len(captions) != len(references):
        raise ValueError(f"expected references for each of {len(captions)} captions, got {len(references)}")
    if not all(references):
        raise ValueError("expected at least one reference for each caption")
    counted = [[_ngrams(reference) for reference in of_one] for of_one in references]
    seen: Counter[tuple[str, ...]] = Counter()
    for of_one in counted:
        seen.update({ngram for reference in of_one for ngram in reference})
    pictures = math.log(len(captions))
    vector = _Weights(seen, pictures)
    scores = []
    for caption, of_one in zip(captions, counted, strict=True):
        own = vector(_ngrams(caption))
        similar = [_similarity(own, vector(reference)) for reference in of_one]
        scores.append(10 * sum(similar) / len(similar))
    return scores


def noun_recall(caption: str, nouns: Sequence[str]) -> float:
    """Return the share of nouns that a caption names, as whole words.

    Args:
        caption: what the model wrote.
        nouns: what it should name; further names of one thing follow after a "|". A plural in -s or -es counts.

    Example:
        >>> noun_recall("Two dogs on a sofa.", ["dog|puppy", "couch|sofa", "lamp"])
        0.6666666666666666
    """
    if not nouns:
        return 0.0
    said = f" {' '.join(words(caption))} "
    return sum(any(_says(said, name) for name in noun.split("|")) for noun in nouns) / len(nouns)


def _says(said: str, name: str) -> bool:
    bare = " ".join(words(name))
    return bool(bare) and any(f" {bare}{ending} " in said for ending in ("", "s", "es"))


def _ngrams(caption: str) -> Counter[tuple[str, ...]]:
    said = words(caption)
    return Counter(
        tuple(said[start : start + size])
        for size in range(1, _LONGEST + 1)
        for start in range(len(said) - size + 1)
    )


class _Weights:
    """TF-IDF vectors of captions, by length of the n-grams, with their norms and the caption's length."""

    def __init__(self, seen: Counter[tuple[str, ...]], pictures: float):
        self.seen, self.pictures = seen, pictures

    def __call__(self, counts: Counter[tuple[str, ...]]) -> tuple[_Vector, list[float], int]:
        vector: _Vector = [{} for _ in range(_LONGEST)]
        for ngram, count in counts.items():
            rarity = self.pictures - math.log(max(1, self.seen[ngram]))
            vector[len(ngram) - 1][ngram] = count * rarity
        norms = [math.sqrt(sum(weight**2 for weight in part.values())) for part in vector]
        length = sum(
            count for ngram, count in counts.items() if len(ngram) == 2
        )  # as COCO's code measures it
        return vector, norms, length


def _similarity(own: tuple[_Vector, list[float], int], reference: tuple[_Vector, list[float], int]) -> float:
    """Clipped cosine of two captions, mean over the lengths of n-grams, less where their lengths differ."""
    penalty = math.exp(-((own[2] - reference[2]) ** 2) / (2 * _SIGMA**2))
    total = 0.0
    for mine, theirs, norm, other in zip(own[0], reference[0], own[1], reference[1], strict=True):
        if norm and other:
            both = sum(
                min(weight, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0) for ngram, weight in mine.items()
            )
            total += both / (norm * other)
    return penalty * total / _LONGEST
