"""Scenes of a stage: objects scattered, beside each other, counted, alone. Every object stands out from its ground."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llavit.starter.bench.stage import Stage, Unfit
from llavit.starter.bench.wording import WORDING
from llavit.starter.compose import copies, related, scatter
from llavit.starter.concepts import Concept
from llavit.starter.kit import Kit, Maker, Sample
from llavit.starter.scene import Scene, Thing

_TRIES = 30


def retried(maker: Maker) -> Maker:
    """Let a maker begin anew when its objects turn out to be unfit.

    What was dealt stays as it is, so that answers stay balanced; only what was drawn at random changes.
    """

    def again(kit: Kit) -> list[Sample]:
        for _ in range(200):
            try:
                return maker(kit)
            except Unfit:
                continue
        raise RuntimeError(f"{maker.__name__}, number {kit.deal.ordinal}: the gallery has no fitting objects")

    again.__name__, again.__doc__ = maker.__name__, maker.__doc__
    return again


def grounded(stage: Stage, kind: str, things: Sequence[Thing]) -> Scene:
    """A scene on a ground from which all of its objects stand out.

    Raises:
        Unfit: there is none.
    """
    ground = stage.ground(things)
    if ground is None:
        raise Unfit
    return stage.scene(kind, things, ground)


def _tried(stage: Stage, kind: str, compose: Callable[[], Sequence[Thing]]) -> Scene:
    for _ in range(_TRIES):
        try:
            return grounded(stage, kind, compose())
        except Unfit:
            continue
    raise Unfit


def alone(
    stage: Stage, kind: str, concept: Concept, least: int, most: int, colour: str | None = None
) -> Scene:
    """One object whose longer side has `least` to `most` units."""
    return _tried(
        stage,
        kind,
        lambda: [stage.thing(concept, stage.source(concept), stage.rng.randint(least, most), colour=colour)],
    )


def scattered(stage: Stage, kind: str, concepts: Sequence[Concept]) -> Scene:
    """One to four objects anywhere, without overlap."""
    return _tried(stage, kind, lambda: scatter(stage, list(concepts)))


def beside(stage: Stage, concepts: Sequence[Concept], side: str, alone: bool = False) -> Scene:
    """Two or three objects; the first lies at `side` of the second, and if `alone`, no third one does."""
    return _tried(stage, "relation", lambda: related(stage, list(concepts), side, False, alone))


def counted(stage: Stage, groups: Sequence[tuple[Concept, int]]) -> Scene:
    """So many copies of each concept, at most nine objects."""
    return _tried(stage, "count", lambda: copies(stage, groups))


def wording(kit: Kit, key: str, *slots: str) -> str:
    """One phrasing of a key with its slots still open, so that several questions are put in the same words.

    Example:
        >>> from random import Random
        >>> from llavit.starter.plan import Deal
        >>> kit = Kit(None, "train", Random(1), Deal("example", 1))
        >>> wording(kit, "exist", "a_thing").count("{a_thing}")
        1
    """
    return kit.phrase(WORDING[key], **{slot: "{" + slot + "}" for slot in slots})
