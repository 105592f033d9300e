"""The rows of the result: what each measures, its bar, and how it comes out of a group's timings."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Raw = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A row's result.

    Attributes:
        value: what is held against the bar, the median over the pairs.
        ours: median of our side, in `unit`.
        peer: median of what it is compared with; None where there is nothing.
        unit: of ours and peer.
        pairs: the value of each pair.
        facts: what else is worth knowing.
    """

    value: float
    ours: float
    peer: float | None
    unit: str
    pairs: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: as in the result.
        what: in words.
        group: key of `GROUPS`: what is measured together.
        bar: what the value is held against; None for a row that only informs.
        least: whether the bar is the least that is good enough, or the most.
        figure: computes it from the group's raw timings; None where a group could not measure it.
        unit: of the value: "x" is a ratio.
    """

    name: str
    what: str
    group: str
    bar: float | None
    least: bool
    figure: Callable[[Raw], Figure | None]
    unit: str = "x"

    def holds(self, value: float) -> bool | None:
        """Say whether a value meets the bar; None without a bar."""
        if self.bar is None:
            return None
        return value >= self.bar if self.least else value <= self.bar


def _paired(
    ours: list[float], peer: list[float], unit: str, facts: Raw | None = None, by_time: bool = False
) -> Figure:
    """Compare two sides pair by pair: ours over peer, or with `by_time` peer over ours."""
    pairs = [(theirs / mine if by_time else mine / theirs) for mine, theirs in zip(ours, peer, strict=True)]
    return Figure(
        statistics.median(pairs), statistics.median(ours), statistics.median(peer), unit, pairs, facts or {}
    )


def _rates(raw: Raw, label: str) -> list[float]:
    return [answer["step"]["samples"] / answer["seconds"] for answer in raw["answers"][label]]


def _seconds(raw: Raw, label: str) -> list[float]:
    return [answer["seconds"] for answer in raw["answers"][label]]


def _step(raw: Raw) -> Figure:
    facts = {
        "batch": raw["batch"],
        "visual_tokens": raw["visual_tokens"],
        "peer_variants": raw["peer_variants"],
    }
    return _paired(_rates(raw, "ours"), _rates(raw, "peer"), "samples/s", facts)


def _over_nano(raw: Raw) -> Figure | None:
    if "nano" not in raw["answers"]:
        return None
    return _paired(_rates(raw, "ours"), _rates(raw, "nano"), "samples/s", {"peer": raw["facts"]["nano"]})


def _over_llava(raw: Raw) -> Figure:
    return _paired(_seconds(raw, "ours"), _seconds(raw, "ours_llava"), "s/step")


def _mfu(raw: Raw) -> Figure:
    """Hold each step against the peak that was measured just before it."""
    done = [answer["useful_flops"] / answer["seconds"] / 1e9 for answer in raw["answers"]["ours"]]
    peaks = [max(each.values()) / 1e9 for each in raw["matmul_flops"]]
    facts = {
        "peaks_of_squares": raw["matmul_flops"],
        "over_the_best_peak": statistics.median(done) / max(peaks),
    }
    return _paired(done, peaks, "GFLOP/s", facts)


def _memory(raw: Raw) -> Figure:
    """Compare the peaks of steps after warm-up, beyond what the process held with its libraries loaded."""
    grown = {}
    for label in ("ours", "peer"):
        before = raw["facts"][label]["resident_before"]
        grown[label] = [(answer["peak_bytes"] - before) / 2**30 for answer in raw["answers"][label]]
    whole = {
        f"whole_process_gib_{label}": max(answer["peak_bytes"] for answer in raw["answers"][label]) / 2**30
        for label in ("ours", "peer")
    }
    ours, peer = max(grown["ours"]), max(grown["peer"])
    return Figure(ours / peer, ours, peer, "GiB over loaded libraries", [ours / peer], whole)


def _per(raw: Raw, what: str, key: str, label: str) -> list[float]:
    return [answer[key] for answer in raw["answers"][label][what]]


def _best_peer(raw: Raw, what: str, key: str, least: bool) -> str:
    """Choose the faster of the peer's ways for a measurement."""
    found = [label for label in ("peer", "peer_static") if label in raw["answers"]]
    choose = min if least else max
    return choose(found, key=lambda label: statistics.median(_per(raw, what, key, label)))


def _answer(what: str, key: str, unit: str, least: bool) -> Callable[[Raw], Figure]:
    def figure(raw: Raw) -> Figure:
        best = _best_peer(raw, what, key, least)
        facts = {
            "peer": best,
            **{
                label: _per(raw, what, key, label)
                for label in raw["answers"]
                if what in raw["answers"][label]
            },
        }
        return _paired(_per(raw, what, key, "ours"), _per(raw, what, key, best), unit, facts)

    return figure


def _next(raw: Raw) -> Figure:
    return _paired(
        _per(raw, "first", "next_seconds", "ours"), _per(raw, "first", "first_seconds", "ours"), "s"
    )


def _bandwidth(raw: Raw) -> Figure:
    """Hold each decoding against the bandwidth that was measured just before it."""
    size = raw["facts"]["ours"]["bytes_per_token"]
    used = [rate * size / 1e9 for rate in _per(raw, "decode", "tokens_per_second", "ours")]
    read = [max(each.values()) / 1e9 for each in raw["read_bytes_per_second"]]
    facts = {"bytes_per_token": size, "ways_to_read": raw["read_bytes_per_second"]}
    facts["over_the_best_read"] = statistics.median(used) / max(read)
    return _paired(used, read, "GB/s", facts)


def _int8(raw: Raw) -> Figure | None:
    if "ours_int8" not in raw["answers"]:
        return None
    rate = "tokens_per_second"
    facts = {"bytes_per_token": raw["facts"]["ours_int8"]["bytes_per_token"]}
    return _paired(
        _per(raw, "decode", rate, "ours_int8"), _per(raw, "decode", rate, "ours"), "tokens/s", facts
    )


def _concurrent(raw: Raw) -> Figure:
    alone = _per(raw, "concurrent8", "alone_tokens_per_second", "ours")
    return _paired(_per(raw, "concurrent8", "tokens_per_second", "ours"), alone, "tokens/s")


def _served(key: str, ours: str, peer: str, unit: str) -> Callable[[Raw], Figure | None]:
    """Compare two servers: the first over the second, or their times where the key is one."""

    def figure(raw: Raw) -> Figure | None:
        if "left out" in raw:
            return None
        mine, theirs = ([answer[key] for answer in raw["answers"][label]] for label in (ours, peer))
        facts = {name: raw[name] for name in ("chats", "tokens", "dtype", "eager", "vllm", "options")}
        return _paired(mine, theirs, unit, facts)

    return figure


def _two(raw: Raw) -> Figure:
    return _paired(_rates(raw, "two"), _rates(raw, "one"), "samples/s", {"cores": raw["cores"]})


ATTENTION_DOMINATES = 0.5
"""Share of attention in a step's products from which on it counts as dominating; such points don't enter the fit."""
SMALLEST = 512
"""Tokens of a step from which on it enters the fit: below, what every step costs (the optimizer) hides the growth."""


def fit(points: list[Raw]) -> dict[str, Any]:
    """Fit seconds = c x tokens^k to the points of each axis and of all together.

    Returns:
        axis (or "all") to exponent k.
    """
    chosen = [p for p in points if p["attention_share"] < ATTENTION_DOMINATES and p["tokens"] >= SMALLEST]
    axes = {"all": chosen} | {
        axis: [p for p in chosen if p["axis"] == axis] for axis in {p["axis"] for p in chosen}
    }
    found = {}
    for axis, some in axes.items():
        if len({p["tokens"] for p in some}) >= 2:
            logs = np.log([[p["tokens"], p["seconds"]] for p in some])
            found[axis] = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
    return found


def _scaling(raw: Raw) -> Figure | None:
    exponents = fit(raw["points"])
    if not exponents:
        return None
    return Figure(
        max(exponents.values()), max(exponents.values()), 1.0, "exponent", [], {"exponents": exponents}
    )


def _of_training() -> list[Row]:
    rows = []
    for suffix, size in (("", 0), ("_256", 1)):
        tokens = ("64", "256")[size]
        for stage, words in (
            ("instruct", "all of the LLM trains"),
            ("pretrain", "projector and visual QKV train"),
        ):
            what = (
                f"{stage} step ({words}), {tokens} visual tokens: LLaViT vs transformers' LLaVA and Trainer"
            )
            rows.append(Row(f"{stage}_step{suffix}", what, f"{stage}{suffix}", 2.0, True, _step))
        group = f"instruct{suffix}"
        more = [
            Row(
                f"llavit_over_llava{suffix}",
                f"time of an instruct step: LLaViT vs LLaVA, both llavit's, {tokens} visual tokens",
                group,
                1.05,
                False,
                _over_llava,
            ),
            Row(
                f"mfu{suffix}",
                f"useful FLOP/s of an instruct step over the matmul peak, {tokens} visual tokens",
                group,
                0.45,
                True,
                _mfu,
                "share",
            ),
            Row(
                f"peak_memory{suffix}",
                f"peak memory of an instruct step vs transformers' LLaVA, {tokens} visual tokens",
                group,
                0.7,
                False,
                _memory,
            ),
            Row(
                f"instruct_step_nanovlm{suffix}",
                f"instruct step vs nanoVLM's model and loop, {tokens} visual tokens",
                group,
                None,
                True,
                _over_nano,
            ),
        ]
        rows += more
    return rows


def _of_answering() -> list[Row]:
    rows = []
    for suffix, tokens in (("", 64), ("_256", 256)):
        group, about = f"answer{suffix}", f"{tokens} visual tokens"
        vs = "vs transformers' generate"
        first = _answer("first", "first_seconds", "s", least=True)
        rate = "tokens_per_second"
        decode = _answer("decode", rate, "tokens/s", least=False)
        batch = _answer("batch8", rate, "tokens/s", least=False)
        rows += [
            Row(f"first_answer{suffix}", f"time to first token {vs}, {about}", group, 0.8, False, first),
            Row(
                f"next_answer{suffix}",
                f"time to first token of a second question on the same image vs the first one, {about}",
                group,
                0.35,
                False,
                _next,
            ),
            Row(f"decode{suffix}", f"decoding, batch 1, {vs}, {about}", group, 3.0, True, decode),
            Row(
                f"decode_bandwidth{suffix}",
                f"bytes of weights read per second in decoding over the read bandwidth, {about}",
                group,
                0.6,
                True,
                _bandwidth,
                "share",
            ),
            Row(f"batch8{suffix}", f"8 answers at once {vs}, {about}", group, 2.0, True, batch),
            Row(
                f"concurrent8{suffix}",
                f"8 clients at once vs one after the other, {about}",
                group,
                2.5,
                True,
                _concurrent,
            ),
        ]
    return rows


def _of_serving() -> list[Row]:
    """All over HTTP. The first three inform: which server is better depends on the machine."""
    who = "16 chats at once: vLLM vs llavit serve"
    rate = _served("tokens_per_second", "vllm", "ours", "tokens/s")
    first = _served("first_seconds", "vllm", "ours", "s")
    following = _served("next_seconds", "vllm", "ours", "s")
    cost = _served("seconds", "vllm", "vllm_llava", "s/round")
    return [
        Row("serve16", f"tokens of answers per second, {who}", "serving", None, True, rate),
        Row("serve16_first", f"time to first token, {who}", "serving", None, False, first),
        Row(
            "serve16_next",
            f"the same of each chat's second question, {who}",
            "serving",
            None,
            False,
            following,
        ),
        Row(
            "vllm_over_llava", "time of 16 chats at once: vLLM, LLaViT vs LLaVA", "serving", 1.1, False, cost
        ),
    ]


ROWS: tuple[Row, ...] = (
    *_of_training(),
    *_of_answering(),
    Row(
        "decode_int8",
        "decoding with int8 weights vs bfloat16, both llavit's",
        "answer",
        None,
        True,
        _int8,
    ),
    Row(
        "scaling",
        "exponent of step time over tokens: visual tokens, images per sample, samples per batch",
        "scaling",
        1.1,
        False,
        _scaling,
        "exponent",
    ),
    Row(
        "two_processes",
        "2 processes of 1 thread (DDP) vs 1 process of 2 threads",
        "two_processes",
        0.9,
        True,
        _two,
    ),
    *_of_serving(),
)
"""All rows, in the order of the table."""


def chosen(names: list[str]) -> list[Row]:
    """Give the rows of some names; all without any.

    Raises:
        ValueError: an unknown name; says which there are.
    """
    known = {row.name: row for row in ROWS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown row {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in names] if names else list(ROWS)
