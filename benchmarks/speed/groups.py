"""Runs what is measured: sides in turn, until each has enough timings.

A group is what is measured together, in one go; its rows (`rows.py`) are computed from what `measure` returns: raw
timings and facts, as JSON has them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed.channel import Side, SideFailed
from benchmarks.speed.material import Batches, Parts, build, save_models, useful_flops

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        folder: of material, logs and caches.
        pairs: timings of each side.
        warm_up: training steps before the first timing.
        threads: of each process that computes alone.
        batch: samples of a training step; for image sizes after the first one, a share of it, so that steps have
            a like number of tokens.
        overrides: of our recipe, `KEY=VALUE`.
        compile_peer: seconds that the compiled peer gets for any step of its warm-up; 0 leaves it out.
        nano: folder of a nanoVLM checkout, or None.
        vllm: folder of an environment with vLLM and llavit, or None.
        vllm_options: more options of its server.
        tokens: of an answer of the servers.
        eager: the servers compile nothing.
        quick: smaller everything; for tests of the harness, whose figures mean nothing.
    """

    folder: Path
    pairs: int = 5
    warm_up: int = 3
    threads: int = 2
    batch: int = 16
    overrides: tuple[str, ...] = ()
    compile_peer: float = 300
    nano: str | None = None
    vllm: str | None = None
    vllm_options: tuple[str, ...] = ()
    tokens: int = 64
    eager: bool = False
    quick: bool = False


@dataclass(frozen=True)
class Bench:
    """Settings, material, a place to tell what happens, and what groups measured before (with the same versions)."""

    settings: Settings
    parts: Parts
    tell: Tell
    earlier: dict[str, Any] = field(default_factory=dict)

    def side(self, name: str, module: str, spec: dict[str, Any], **options: Any) -> Side:
        """Start a side."""
        self.tell(f"starting {name}")
        options = {"threads": self.settings.threads, **options}
        return Side(name, module, spec, log=self.settings.folder / "logs" / f"{name}.log", **options)

    def limits(self, stack: ExitStack) -> Side:
        """Start the side that measures what the machine can do."""
        seconds = 0.05 if self.settings.quick else 0.5
        side = stack.enter_context(
            self.side("limits", "limits", {"seconds": seconds, "quick": self.settings.quick})
        )
        side.wait_ready(120)
        return side


def training(bench: Bench, stage: str, size_index: int) -> dict[str, Any]:
    """Train LLaViT, LLaVA (both ours) and transformers' LLaVA on the same samples, a step each in turn.

    In pre-training LLaVA of ours is left out.

    Returns:
        for each side the answers to its pieces; the matmul peaks measured between them; what was in each step.
    """
    settings, parts = bench.settings, bench.parts
    size = parts.image_sizes[size_index]
    batch = max(settings.batch >> size_index, 2)
    name = f"{stage}-{size}"
    bench.tell("tokenising samples")
    model, processor = build(parts, size, llava=False)
    config = model.config
    del model
    batches = Batches(parts, processor, stage, batch)
    samples = settings.folder / "samples" / f"{name}.pt"
    batches.save(samples)
    base = {
        "tower": parts.tower,
        "llm": parts.llm,
        "layers": list(parts.layers),
        "image_size": size,
        "stage": stage,
        "batch": batch,
    }
    ours = {
        **base,
        "data": batches.path,
        "order": batches.order,
        "cache": str(settings.folder / "features"),
        "overrides": list(settings.overrides),
    }
    with ExitStack() as stack:
        limits = bench.limits(stack)
        sides = {"ours": {**ours, "switches": True}}
        if stage == "instruct":  # in pre-training LLaVA trains less, and there would be nothing to compare
            sides["ours_llava"] = {**ours, "switches": False}
        running = {}
        for label, spec in sides.items():
            running[label] = stack.enter_context(bench.side(f"{name}-{label}", "train_ours", spec))
            warm(bench, running[label])
        known = bench.earlier.get(stage, {}).get("peer_variants", []) if size_index else []
        compiling = stage == "instruct" or not compiling_lost(bench.earlier.get("instruct", {}))
        spec = {**base, "samples": str(samples)}
        peer, tried = best_peer(bench, stack, name, spec, known, compiling)
        running["peer"] = peer
        nano: dict[str, Any] = {"left out": "NANOVLM is not set to the folder of a nanoVLM checkout"}
        if settings.nano:
            spec = {**base, "samples": str(samples), "checkout": settings.nano}
            try:
                side = stack.enter_context(bench.side(f"{name}-nanovlm", "train_nano", spec))
                warm(bench, side, steps=1)
                running["nano"] = side
                nano = {}
            except SideFailed as error:
                nano = {"left out": str(error)}
        align(list(running.values()))
        answers: dict[str, list[dict[str, Any]]] = {label: [] for label in running}
        peaks = []
        for number in range(settings.pairs):
            peaks.append(limits.ask("matmul")["flops"])
            for label, side in running.items():
                bench.tell(f"{name}: {label}, {number + 1} of {settings.pairs}")
                answers[label].append(side.ask("steps", count=1))
        facts = {label: side.facts for label, side in running.items()}
    rates = facts["ours"]["rates"]
    for label in running:
        for answer in answers[label]:
            step = batches.step(answer["first_step"])
            answer["step"] = asdict(step)
            if label == "ours":
                answer["useful_flops"] = useful_flops(config, rates, step)
    return {
        "image_size": size,
        "visual_tokens": config.image_seq_length,
        "batch": batch,
        "facts": facts,
        "answers": answers,
        "matmul_flops": peaks,
        "peer_variants": tried,
        "nano": nano,
    }


def warm(bench: Bench, side: Side, limit: float = 900, steps: int | None = None) -> None:
    """Wait for a training side and let it take its first steps: what is compiled is compiled now."""
    side.wait_ready(limit)
    for _ in range(bench.settings.warm_up if steps is None else steps):
        side.ask("steps", count=1, limit=limit)


def compiling_lost(raw: dict[str, Any]) -> bool:
    """Say whether the compiled peer failed or was slower in what was measured before."""
    variants = raw.get("peer_variants", [])
    worked = [each for each in variants if "failed" not in each]
    tried = any("compile" in each["way"] for each in variants)
    return tried and "compile" not in min(worked, key=lambda each: sum(each["seconds_of_two_steps"]))["way"]


def align(sides: list[Side]) -> None:
    """Let sides that have taken fewer steps catch up, so that all are to train on the same samples from now on."""
    done = [side.last["first_step"] + side.last["steps"] for side in sides]
    for side, steps in zip(sides, done, strict=True):
        if steps < max(done):
            side.ask("steps", count=max(done) - steps)


def best_peer(
    bench: Bench,
    stack: ExitStack,
    name: str,
    spec: dict[str, Any],
    known: list[dict[str, Any]],
    compiling: bool,
) -> tuple[Side, list[dict[str, Any]]]:
    """Try the ways in which a good user would run the peer, give the fastest, and what each took.

    Args:
        bench: the harness.
        stack: ends the side.
        name: of what is measured.
        spec: of the side.
        known: what ways took with fewer visual tokens: only the fastest of them is tried, as compiling takes minutes.
        compiling: whether to try torch_compile.
    """
    ways: list[tuple[str, dict[str, Any]]] = [("plain", {})]
    if spec["stage"] == "pretrain":
        ways.append(("frozen LLM in bfloat16", {"frozen_bf16": True}))
    if bench.settings.compile_peer and compiling:
        last = ways[-1][1]
        ways.append(
            ("torch_compile" + (", frozen LLM in bfloat16" if last else ""), {**last, "compile": True})
        )
    worked = [each for each in known if "failed" not in each]
    if worked:
        fastest = min(worked, key=lambda each: sum(each["seconds_of_two_steps"]))["way"]
        ways = [(way, extra) for way, extra in ways if way == fastest] or ways
    tried: list[dict[str, Any]] = []
    best: tuple[float, Side] | None = None
    for index, (way, extra) in enumerate(ways):
        limit = bench.settings.compile_peer if extra.get("compile") else 900
        side = bench.side(f"{name}-peer-{index}", "train_peer", {**spec, **extra})
        try:
            warm(bench, side, limit, steps=None if extra.get("compile") else 1)
            seconds = [side.ask("steps", count=1)["seconds"] for _ in range(2)]
        except SideFailed as error:
            side.close()
            tried.append({"way": way, "failed": str(error)})
            if len(ways) == 1 or not extra:
                raise
            continue
        tried.append({"way": way, "seconds_of_two_steps": seconds})
        if best is None or sum(seconds) < best[0]:
            if best is not None:
                best[1].close()
            best = (sum(seconds), side)
        else:
            side.close()
    assert best is not None
    stack.callback(best[1].close)
    return best[1], tried


def answering(bench: Bench, size_index: int) -> dict[str, Any]:
    """Ask our engine and transformers' generate the same questions, in turn.

    Returns:
        for each side and measurement the answers; read bandwidths measured between them.
    """
    settings, parts = bench.settings, bench.parts
    size = parts.image_sizes[size_index]
    bench.tell("building models")
    folders = save_models(parts, size, settings.folder)
    base = {"data": parts.instruct, "quick": settings.quick}
    with ExitStack() as stack:
        limits = bench.limits(stack)
        running: dict[str, Side] = {}
        tried: list[dict[str, Any]] = []
        plans = {
            "ours": ("answer_ours", {**base, "model": folders["llavit"]}),
            "ours_int8": ("answer_ours", {**base, "model": folders["llavit"], "quantize": "int8"}),
            "peer": ("answer_peer", {**base, "model": folders["llava"]}),
            "peer_static": ("answer_peer", {**base, "model": folders["llava"], "static": True}),
        }
        if settings.quick:
            del plans["peer_static"]
        if (
            settings.quick or size_index
        ):  # images change nothing about decoding with int8 weights, which compiles anew
            del plans["ours_int8"]
        for label, (module, spec) in plans.items():
            side = bench.side(f"answer-{size}-{label}", module, spec)
            try:
                side.wait_ready(600)
                for what in measured(label):
                    side.ask(what, round=0, limit=600)
            except SideFailed as error:
                side.close()
                tried.append({"side": label, "failed": str(error)})
                if label in ("ours", "peer"):
                    raise
                continue
            stack.callback(side.close)
            running[label] = side
        answers: dict[str, dict[str, list[Any]]] = {label: {} for label in running}
        bandwidths = []
        for what in MEASUREMENTS:
            for number in range(settings.pairs):
                if what == "decode":
                    bandwidths.append(limits.ask("read")["bytes_per_second"])
                for label, side in running.items():
                    if what in measured(label):
                        bench.tell(f"answer-{size}: {what}, {label}, {number + 1} of {settings.pairs}")
                        answers[label].setdefault(what, []).append(side.ask(what, round=number + 1))
        facts = {label: side.facts for label, side in running.items()}
    return {
        "image_size": size,
        "facts": facts,
        "answers": answers,
        "read_bytes_per_second": bandwidths,
        "failed": tried,
    }


MEASUREMENTS = ("first", "decode", "batch8", "concurrent8")
"""What an answering side is told to do. `first` is a first question and a second one on the same image."""


def measured(label: str) -> tuple[str, ...]:
    """Say what is measured of an answering side."""
    if label == "ours_int8":
        return ("decode",)
    return MEASUREMENTS if label == "ours" else MEASUREMENTS[:-1]


def two_processes(bench: Bench) -> dict[str, Any]:
    """Train with two processes of one thread (DDP, gloo) and with one process of two threads, in turn."""
    settings, parts = bench.settings, bench.parts
    size = parts.image_sizes[0]
    bench.tell("tokenising samples")
    batches = Batches(parts, build(parts, size, llava=False).processor, "instruct", settings.batch)
    spec = {
        "tower": parts.tower,
        "llm": parts.llm,
        "layers": list(parts.layers),
        "image_size": size,
        "stage": "instruct",
        "batch": settings.batch,
        "data": batches.path,
        "order": batches.order,
        "cache": str(settings.folder / "features"),
        "overrides": list(settings.overrides),
        "switches": True,
    }
    answers: dict[str, list[dict[str, Any]]] = {"one": [], "two": []}
    with ExitStack() as stack:
        one = stack.enter_context(bench.side("one-process", "train_ours", spec, threads=2))
        warm(bench, one)
        options = {"threads": 1, "processes": 2, "environment": {"GLOO_SOCKET_IFNAME": "lo"}}
        two = stack.enter_context(
            bench.side("two-processes", "train_ours", {**spec, "processes": 2}, **options)
        )
        warm(bench, two)
        align([one, two])
        for number in range(settings.pairs):
            for label, side in (("two", two), ("one", one)):
                bench.tell(f"two_processes: {label}, {number + 1} of {settings.pairs}")
                answer = side.ask("steps", count=1)
                answers[label].append({**answer, "step": asdict(batches.step(answer["first_step"]))})
        facts = {"one": one.facts, "two": two.facts}
    return {"facts": facts, "answers": answers, "batch": settings.batch, "cores": os.cpu_count()}


def scaling(bench: Bench) -> dict[str, Any]:
    """Time steps of growing work in one process."""
    parts, settings = bench.parts, bench.settings
    spec = {
        "tower": parts.tower,
        "llm": parts.llm,
        "layers": list(parts.layers),
        "image_size": parts.image_sizes[0],
        "repeats": 1 if settings.quick else 3,
        "quick": settings.quick,
    }
    with ExitStack() as stack:
        side = stack.enter_context(bench.side("scaling", "scaling", spec))
        side.wait_ready(600)
        points = []
        for axis, values in SCALES[settings.quick].items():
            for value in values:
                bench.tell(f"scaling: {axis} {value}")
                points.append({"axis": axis, "value": value, **side.ask("point", axis=axis, value=value)})
        return {"facts": side.facts, "points": points}


SCALES: dict[bool, dict[str, tuple[int, ...]]] = {
    False: {
        "visual tokens": (16, 64, 256, 576),
        "images per sample": (1, 2, 4, 8),
        "samples per batch": (1, 2, 4, 8, 16, 32, 64),
    },
    True: {"visual tokens": (4, 16), "images per sample": (1, 2), "samples per batch": (1, 2)},
}
"""Axis to values, in full and quick."""
