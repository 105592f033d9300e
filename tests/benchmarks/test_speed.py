"""make bench: a quick run with a tiny model, what it writes, and the table in docs/."""

import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from benchmarks.speed import answer_ours, answer_peer, report, scaling
from benchmarks.speed.__main__ import GROUPS, run
from benchmarks.speed.channel import SideFailed
from benchmarks.speed.groups import MEASUREMENTS, Bench, Settings, compiling_lost
from benchmarks.speed.limits import read_bytes_per_second
from benchmarks.speed.material import Batches, Parts, Step, build, save_models, useful_flops
from benchmarks.speed.rows import ROWS, chosen, fit
from tests.tiny import HEAD_DIM

ISSUE = (
    "instruct_step pretrain_step llavit_over_llava mfu peak_memory first_answer next_answer decode decode_bandwidth "
    "batch8 scaling two_processes"
)


@pytest.fixture(scope="module")
def parts(tiny, tmp_path_factory):
    """The tiny model's parts; its records with a picture, as some with two questions."""
    rows = [row for row in json.loads(tiny.data.read_text()) if "image" in row]
    data = tiny.data.with_name("two-turns.json")
    data.write_text(json.dumps([_two_turns(row) for row in rows]))
    return Parts(str(tiny.vision), str(tiny.llm), (1, 2), (16,), str(data), str(data))


def _two_turns(row):
    first, answer = row["conversations"]
    return {**row, "conversations": [first, answer, {"from": "human", "value": "And why?"}, answer]}


@pytest.fixture
def settings(tmp_path):
    return Settings(
        folder=tmp_path / "work",
        pairs=1,
        warm_up=1,
        threads=1,
        batch=4,
        overrides=("compile=never",),
        compile_peer=0,
        quick=True,
    )


def test_a_quick_run_trains_on_all_sides_and_writes_everything_down(parts, settings, tmp_path):
    results, doc = tmp_path / "results", tmp_path / "speed.md"
    rows = [row for row in ROWS if row.group == "instruct"]
    run(rows, settings, parts, Console(quiet=True), results)

    entries, details = report.read(results)
    keys = ["name", "value", "bar", "holds", "ours", "peer", "unit"]
    assert list(json.loads((results / "latest.json").read_text())[0]) == keys
    assert {row.name for row in rows} - set(entries) == {"instruct_step_nanovlm"} == set(details["left_out"])
    raw = details["groups"]["instruct"]["raw"]["answers"]
    # Warm-up is left out: a step, and for the peer two more, which showed how fast it is; the others have caught up.
    assert {label: side[0]["first_step"] for label, side in raw.items()} == dict.fromkeys(raw, 3)
    ours, peer = (raw[side][0] for side in ("ours", "peer"))
    assert ours["step"] == peer["step"]
    assert entries["instruct_step"]["value"] == pytest.approx(peer["seconds"] / ours["seconds"], rel=1e-3)
    assert entries["instruct_step"]["holds"] == (entries["instruct_step"]["value"] >= 2)
    assert entries["peak_memory"]["ours"] > 0
    assert details["groups"]["instruct"]["made"]["environment"]["torch"]

    report.document(results, doc)
    assert report.between_marks(doc) == report.table(results) == (results / "latest.md").read_text()
    report.picture(results)
    assert (results / "latest.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_quick_run_answers_on_all_sides_and_grows(parts, settings, tmp_path):
    rows = [row for row in ROWS if row.group in ("answer", "scaling")]
    run(rows, settings, parts, Console(quiet=True), tmp_path)
    entries, details = report.read(tmp_path)
    assert {row.name for row in rows} - set(entries) == {"decode_int8"} == set(details["left_out"])
    sides = details["groups"]["answer"]["raw"]["answers"]
    assert len({str(sides[side]["first"][0]["prompt_tokens"]) for side in sides}) == 1


class Script:
    """A channel that gives some commands and keeps the answers: for a side in this process."""

    def __init__(self, *commands):
        self.given, self.answers, self.facts = commands, [], {}

    def ready(self, **facts):
        self.facts = facts

    def commands(self):
        return iter(self.given)

    def send(self, **answer):
        self.answers.append(answer)


def test_both_answering_sides_take_the_same_prompts_and_count_the_same_tokens(parts, tmp_path):
    folders = save_models(parts, 16, tmp_path)
    asked = [{"do": what, "round": 1} for what in MEASUREMENTS]
    ours, peer = Script(*asked), Script(*asked[:-1])
    answer_ours.side({"model": folders["llavit"], "data": parts.instruct, "quick": True}, ours)
    answer_peer.side({"model": folders["llava"], "data": parts.instruct, "quick": True}, peer)
    (first, decode, batch, together), (their_first, their_decode, their_batch) = ours.answers, peer.answers
    assert first["prompt_tokens"] == their_first["prompt_tokens"] and first["next_seconds"] > 0
    assert decode["tokens"] + decode["before"] == their_decode["tokens"] + their_decode["before"] == 6
    assert batch["tokens"] == their_batch["tokens"] == 8 * 4
    assert together["tokens_per_second"] > 0 and together["alone_tokens_per_second"] > 0
    llm = (
        2 * (2 * 32 * 4 * HEAD_DIM + 2 * 32 * 2 * HEAD_DIM + 3 * 32 * 64 + 2 * 32) + 32
    )  # of tests/tiny.py: layers and norm
    words = ours.facts["bytes_per_token"] / (2 if ours.facts["dtype"] == "torch.bfloat16" else 4) - llm
    assert words // 32 in range(259, 300)  # a row of the head for each byte, special tokens, the image


def test_steps_of_growing_work_are_timed(parts):
    points = Script(*({"do": "point", "axis": "samples per batch", "value": value} for value in (1, 2)))
    spec = {"tower": parts.tower, "llm": parts.llm, "layers": [1, 2], "image_size": 16}
    scaling.side({**spec, "repeats": 1, "quick": True}, points)
    one, two = points.answers
    assert two["tokens"] == 2 * one["tokens"] and 0 < one["gradient_seconds"] < one["seconds"]
    assert one["attention_share"] == two["attention_share"]


def test_rows_have_the_names_of_the_table_and_each_group_is_measured():
    names = [row.name for row in ROWS]
    assert set(ISSUE.split()) <= set(names) and len(names) == len(set(names))
    assert {row.group for row in ROWS} == set(GROUPS)
    with pytest.raises(ValueError, match="unknown row 'decoed'; there are instruct_step"):
        chosen(["decoed"])


def test_what_an_interrupted_run_has_finished_is_not_measured_again(settings, parts, tmp_path, monkeypatch):
    measured = []

    def group(name, fails):
        def measure(bench):
            measured.append(name)
            if fails and len(measured) < 3:
                raise KeyboardInterrupt
            return {"points": []}

        return measure

    monkeypatch.setitem(GROUPS, "scaling", group("scaling", False))
    monkeypatch.setitem(GROUPS, "two_processes", group("two_processes", True))
    rows = [replace(row, figure=lambda raw: None) for row in chosen(["scaling", "two_processes"])]
    for again in (False, False):
        try:
            run(rows, settings, parts, Console(quiet=True), tmp_path, again=again)
        except KeyboardInterrupt:
            continue
    assert measured == ["scaling", "two_processes", "two_processes"]


def test_a_side_that_fails_says_why(parts, settings):
    bench = Bench(settings, parts, lambda text: None)
    spec = {"tower": parts.tower, "llm": parts.llm, "layers": [1, 2], "image_size": 16, "stage": "instruct"}
    with (
        bench.side("broken", "train_peer", {**spec, "samples": "nowhere.pt"}) as side,
        pytest.raises(
            SideFailed, match=r"(?s)broken: FileNotFoundError.*nowhere\.pt.*The end of .*broken\.log"
        ),
    ):
        side.wait_ready(60)


def test_steps_hold_what_their_samples_hold(parts):
    processor = build(parts, 16, llava=False).processor
    batches = Batches(parts, processor, "instruct", 4)
    step, sizes = batches.step(0), [len(batches.samples[index]["input_ids"]) for index in batches.order[:4]]
    assert step.samples == 4 and step.visual_tokens == 16 and step.text_tokens == sum(sizes) - 16
    assert step.attended_causally == sum(n * (n + 1) // 2 for n in sizes)
    assert step.attended - step.attended_causally == 4 * 6  # 4 visual tokens an image: 6 pairs see forward
    assert batches.step(len(batches.order) // 4) == step


def test_useful_flops_are_those_of_a_step_without_padding_or_masked_attention(parts):
    """Against torch's own counter on one sample whose attention is a matrix product of its full square."""
    from torch.utils.flop_counter import FlopCounterMode

    from llavit.train.parts import freeze

    model, processor = build(parts, 16, llava=False)
    rates = {"vision_tower": 0.0, "projector": 1e-3, "visual_qkv": 1e-3, "llm": 1e-3}
    model.float().train().set_attn_implementation({"text_config": "eager"})
    freeze(model, rates)
    sample = Batches(parts, processor, "instruct", 1).samples[0]
    length, visual = len(sample["input_ids"]), 4
    features = torch.randn(1, visual, model.model.multi_modal_projector.linear_1.in_features)
    inputs = {key: sample[key][None] for key in ("input_ids", "labels", "image_ids")}
    with FlopCounterMode(display=False) as counter:
        model(**inputs, image_features=features, supervised_logits_only=True, use_cache=False).loss.backward()
    supervised = int((sample["labels"][1:] != -100).sum())
    step = Step(1, length - visual, visual, supervised, length**2, length**2)
    assert useful_flops(model.config, rates, step) == pytest.approx(counter.get_total_flops(), rel=0.02)
    causal = replace(step, attended=length * (length + 1) // 2)
    assert useful_flops(model.config, rates, causal) < useful_flops(model.config, rates, step)


def test_a_compiled_peer_that_lost_or_failed_is_not_tried_again():
    def variants(*each):
        return {"peer_variants": [{"way": way, **result} for way, result in each]}

    plain = ("plain", {"seconds_of_two_steps": [2, 2]})
    assert not compiling_lost({}) and not compiling_lost(variants(plain))
    assert compiling_lost(variants(plain, ("torch_compile", {"failed": "too slow"})))
    assert compiling_lost(variants(plain, ("torch_compile", {"seconds_of_two_steps": [3, 2]})))
    assert not compiling_lost(variants(plain, ("torch_compile", {"seconds_of_two_steps": [1, 2]})))


def test_growth_is_fitted_where_attention_does_not_dominate():
    def point(tokens, seconds, share=0.1, axis="visual tokens"):
        return {"axis": axis, "tokens": tokens, "seconds": seconds, "attention_share": share}

    points = [point(10, 9), point(1000, 1), point(2000, 2), point(4000, 4), point(8000, 99, share=0.6)]
    assert fit(points)["all"] == pytest.approx(1)
    assert fit([*points, point(1000, 1, axis="b"), point(2000, 4, axis="b")])["b"] == pytest.approx(2)


def test_reading_is_measured_by_the_bytes_that_are_there():
    for way, rate in read_bytes_per_second(0.01, size=2**24).items():
        assert 1e7 < rate < 1e13 and math.isfinite(rate), way


@pytest.mark.slow
def test_two_processes_and_one_take_the_same_steps(parts, settings):
    from benchmarks.speed.groups import two_processes

    raw = two_processes(Bench(settings, parts, lambda text: None))
    assert [raw["answers"][side][0]["step"] for side in ("one", "two")] == [
        raw["answers"]["one"][0]["step"]
    ] * 2


def test_the_table_in_docs_is_that_of_the_result_file():
    assert report.between_marks() == report.table()


def test_every_result_has_its_details_and_its_ratio_and_bar_agree():
    entries, details = report.read()
    assert not entries or (report.RESULTS / "latest.png").exists()
    for row in ROWS:
        if row.name in entries:
            entry = entries[row.name]
            assert entry["holds"] == row.holds(entry["value"]) and entry["bar"] == row.bar
            assert details["rows"][row.name]["measured"]
            assert row.name.startswith("peak_memory") or len(details["rows"][row.name]["pairs"]) != 1
