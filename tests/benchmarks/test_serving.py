"""make bench's servers: real processes, real chats over HTTP, and what comes of them."""

import json
import sys

import pytest
import torch
from PIL import Image

from benchmarks.speed import report
from benchmarks.speed.asking import Question
from benchmarks.speed.channel import SideFailed
from benchmarks.speed.groups import Bench, Settings
from benchmarks.speed.rows import ROWS
from benchmarks.speed.servers import Server, llavit_command, llavit_environment, vllm_command, vllm_facts
from benchmarks.speed.serving import LABELS, chats, serving

SERVED = [row for row in ROWS if row.group == "serving"]


def test_chats_have_two_answers_each_of_the_length_that_was_asked_for(tiny, tmp_path):
    built = tiny.build(dtype=torch.float32)
    built.model.save_pretrained(tmp_path / "model")
    built.processor.save_pretrained(tmp_path / "model")
    command = llavit_command(str(tmp_path / "model"), "float32", 4, eager=True, length=256)
    colours = ("red", "green", "blue")
    asked = [Question(Image.new("RGB", (20, 20), colour), "What is this?", "And why?") for colour in colours]
    with Server("mine", command, tmp_path / "log", llavit_environment(threads=1)) as server:
        server.wait_ready(120)
        first, again = (chats(server.url, "mine", asked, tokens=5) for _ in range(2))
    assert server.process.poll() is not None
    assert first["tokens"] == 2 * 3 * 5 == again["tokens"]
    assert first["prompt_tokens"] == again["prompt_tokens"] > 0
    assert first["tokens_per_second"] == pytest.approx(first["tokens"] / first["seconds"])
    for key in ("first_seconds", "next_seconds"):
        assert 0 < first[key] < first["seconds"] and len(first[f"all_{key}"]) == 3


def test_a_server_that_cannot_start_is_an_error_with_the_end_of_its_log(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such model: nowhere')"]
    with (
        Server("bad", command, tmp_path / "log", {}) as server,
        pytest.raises(SideFailed, match=r"status 1\n.*\nno such model: nowhere"),
    ):
        server.wait_ready(60)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        (None, "no environment with vLLM and llavit: make test-vllm"),
        ("/nowhere", "VLLM is set to a folder without bin/python"),
        (
            sys.prefix,
            "the environment VLLM does not have what it takes: ModuleNotFoundError: No module named 'vllm'",
        ),
    ],
)
def test_without_vllm_the_rows_are_left_out_with_the_reason(environment, reason, tmp_path):
    settings = Settings(folder=tmp_path, vllm=environment)
    raw = serving(Bench(settings, parts=None, tell=print))
    assert raw["left out"].startswith(reason)
    report.record(SERVED, raw, {}, tmp_path)
    left_out = report.read(tmp_path)[1]["left_out"]
    assert set(left_out) == {row.name for row in SERVED} and set(left_out.values()) == {raw["left out"]}
    report.document(tmp_path, None)
    assert f"| `serve16` | left out: {reason}"[:60] in (tmp_path / "latest.md").read_text()


def test_values_are_medians_over_rounds(tmp_path):
    rounds = {
        "ours": [(100, 1.0, 0.5, 10), (80, 1.2, 0.5, 12), (90, 1.0, 0.4, 11)],
        "vllm": [(150, 0.5, 0.5, 8.8), (160, 0.6, 0.25, 9), (90, 1.0, 0.1, 10)],
        "vllm_llava": [(1, 1, 1, 8), (1, 1, 1, 8), (1, 1, 1, 10)],
    }
    assert tuple(rounds) == LABELS
    keys = ("tokens_per_second", "first_seconds", "next_seconds", "seconds")
    answers = {label: [dict(zip(keys, one, strict=True)) for one in of] for label, of in rounds.items()}
    raw = {
        "answers": answers,
        "chats": 16,
        "tokens": 8,
        "dtype": "float32",
        "eager": True,
        "vllm": {},
        "options": [],
    }
    report.record(SERVED, raw, {}, tmp_path)
    entries, _ = report.read(tmp_path)
    values = {name: entry["value"] for name, entry in entries.items()}
    assert values == {"serve16": 1.5, "serve16_first": 0.5, "serve16_next": 0.5, "vllm_over_llava": 1.1}
    assert entries["vllm_over_llava"]["holds"] and entries["serve16"]["holds"] is None
    assert (entries["serve16"]["ours"], entries["serve16"]["peer"]) == (150, 90)


def test_vllm_is_found_by_its_environment_and_asked_for_the_same(tmp_path):
    command = vllm_command(tmp_path / "python", "model", "float32", 16, True, ("--swap", "1"))
    assert command[0] == str(tmp_path / "python") and command[-3:] == ["--swap", "1", "--enforce-eager"]
    assert command[command.index("--max-num-seqs") + 1] == "16"
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    facts = {"vllm": "0.32.0", "torch": "2", "transformers": "5", "plugin": False}
    fake.write_text(f"#!/bin/sh\necho '{json.dumps(facts)}'\n")
    fake.chmod(0o755)
    assert vllm_facts(str(tmp_path))[1]["left out"].startswith("the environment VLLM lacks llavit")
    fake.write_text(f"#!/bin/sh\necho '{json.dumps({**facts, 'plugin': True})}'\n")
    assert vllm_facts(str(tmp_path)) == (fake, {"vllm": "0.32.0", "torch": "2", "transformers": "5"})
