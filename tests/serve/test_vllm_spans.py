import random

import pytest

from llavit.serve.vllm.spans import split_at_images, whole_images


def visible(chunks, images):
    """By request, which keys each query of a step sees, out of the pieces."""
    seen = [{} for _ in chunks]
    for piece in split_at_images(chunks, images):
        for position in range(piece.first, piece.end):
            assert position not in seen[piece.request]
            seen[piece.request][position] = set(range(position + 1 if piece.causal else piece.end))
    return seen


def wanted(chunks, images):
    """The same by the rule itself: what came before, and all of one's own image."""
    seen = []
    for request, (first, end) in enumerate(chunks):
        seen.append({})
        for position in range(first, end):
            mine = {p for a, b in images.get(request, ()) if a <= position < b for p in range(a, b)}
            seen[-1][position] = set(range(position + 1)) | mine
    return seen


@pytest.mark.parametrize(
    ("chunks", "images"),
    [
        ([(0, 9)], {0: [(3, 6)]}),
        ([(0, 9)], {0: [(0, 4), (4, 9)]}),  # adjacent images, and nothing else
        ([(0, 9), (0, 4), (7, 8)], {0: [(7, 9)], 2: [(1, 5)]}),
        ([(4, 9)], {0: [(2, 6)]}),  # a prefix-cache hit ended inside the image
        ([(5, 6)], {0: [(2, 6)]}),  # of which one token was left
        ([(0, 3)], {0: [(5, 9)]}),  # not there yet
        ([(0, 9)], {}),
    ],
)
def test_each_query_sees_what_came_before_and_its_own_image(chunks, images):
    assert visible(chunks, images) == wanted(chunks, images)


def test_random_steps():
    choose = random.Random(0)
    for _ in range(300):
        chunks, images = [], {}
        for request in range(choose.randint(1, 4)):
            edges = sorted(choose.sample(range(30), 6))
            spans = [(edges[i], edges[i + 1]) for i in (0, 2, 4)]
            first = choose.randint(0, 29)
            end = choose.choice(
                [e for e in range(first + 1, 31) if not any(a < e < b for a, b in spans)] or [30]
            )
            chunks.append((first, end))
            images[request] = spans
        assert visible(chunks, images) == wanted(chunks, images)


def test_pieces_are_in_the_order_of_tokens():
    pieces = split_at_images([(2, 9), (0, 5)], {0: [(6, 8), (3, 5)], 1: [(0, 5)]})
    assert [(p.request, p.first) for p in pieces] == [(0, 2), (0, 3), (0, 5), (0, 6), (0, 8), (1, 0)]


def test_a_cut_image_is_an_error_and_not_half_causal():
    with pytest.raises(RuntimeError, match="positions 3 to 8 is cut at 6"):
        split_at_images([(0, 6)], {0: [(3, 8)]})


@pytest.mark.parametrize("computed", range(12))
@pytest.mark.parametrize("new", range(1, 12))
def test_no_step_ends_inside_an_image(computed, new):
    images = [(2, 5), (5, 9)]
    allowed = whole_images(images, computed, new)
    assert 0 <= allowed <= new
    assert not any(first < computed + allowed < end for first, end in images) or allowed == 0
    if not any(first < computed + new < end for first, end in images):
        assert allowed == new
