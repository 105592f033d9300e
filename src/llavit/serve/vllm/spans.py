"""Images as spans of positions: where a chunk of a prompt may end, and which part of it is causal.

No vLLM in here. Positions count from the beginning of a request; a span is (first, end), without its end.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

Span = tuple[int, int]


class Piece(NamedTuple):
    """Neighbouring tokens of one request that see the same way.

    Attributes:
        request: its number in the batch.
        first: position of the first token.
        end: position after the last one; the piece sees no key from here on.
        causal: a token sees what came before it; else all tokens see all keys before `end`.
    """

    request: int
    first: int
    end: int
    causal: bool


def split_at_images(chunks: Sequence[Span], images: Mapping[int, Iterable[Span]]) -> list[Piece]:
    """Cut the tokens of a step at the edges of images, for attention kernels that know causal and not causal only.

    A piece of text sees all that came before it, as ever. A piece that is an image sees all keys up to the image's
    end, and nothing behind it: the keys are there, since a step writes them before it attends.

    Args:
        chunks: positions that each request computes in this step.
        images: by request, the spans of its images; they do not overlap.

    Returns:
        pieces in the order of tokens. Without an image in any chunk, one piece a request.

    Raises:
        RuntimeError: a chunk ends inside an image, whose tokens could then not see all of it.

    Example:
        >>> for piece in split_at_images([(0, 7), (9, 10)], {0: [(2, 5)]}):
        ...     print(*piece)
        0 0 2 True
        0 2 5 False
        0 5 7 True
        1 9 10 True
    """
    pieces = []
    for request, (first, end) in enumerate(chunks):
        for image_first, image_end in sorted(images.get(request, ())):
            start = max(image_first, first)
            if start >= min(image_end, end):
                continue
            if image_end > end:
                raise RuntimeError(
                    f"image at positions {image_first} to {image_end} is cut at {end} by chunked prefill: its visual "
                    "tokens would not see each other. The scheduler of llavit prevents that; was it replaced?"
                )
            if start > first:
                pieces.append(Piece(request, first, start, True))
            pieces.append(Piece(request, start, image_end, False))
            first = image_end
        if first < end:
            pieces.append(Piece(request, first, end, True))
    return pieces


def whole_images(images: Iterable[Span], computed: int, new: int) -> int:
    """Return how many of `new` tokens may run now, so that none ends inside an image.

    Args:
        images: spans of the request's images.
        computed: tokens that are there already, in the prefix cache perhaps; may end inside an image.
        new: tokens that the budget allows.

    Example:
        >>> whole_images([(4, 10)], computed=0, new=7)  # up to the image
        4
        >>> whole_images([(4, 10)], computed=6, new=3)  # its rest does not fit: wait for a larger budget
        0
        >>> whole_images([(4, 10)], computed=6, new=4)
        4
    """
    for first, end in images:
        if first < computed + new < end:
            return max(first - computed, 0)
    return new


__all__ = ["Piece", "Span", "split_at_images", "whole_images"]
