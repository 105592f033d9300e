import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from llavit import data
from llavit.cli import app
from llavit.cli.data import DataFormat, DataStyle
from llavit.data import JsonReader, open_reader, preview_page, preview_records, verify_data
from llavit.data.dataset import Style
from llavit.data.preview import pieces
from llavit.data.verify_report import duplicates, verify_table

runner = CliRunner()
QUESTION = {"from": "human", "value": "<image>\nWhat?"}
ANSWER = {"from": "gpt", "value": "A cat."}


def run(*arguments):
    return runner.invoke(app, ["data", *map(str, arguments)])


@pytest.fixture(scope="module")
def model_folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, processor = tiny.build(dtype=torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def mess(tmp_path):
    """Eight records, of which half are bad, each in its own way."""
    Image.new("RGB", (30, 20)).save(tmp_path / "rgb.png")
    Image.new("L", (10, 10)).save(tmp_path / "grey.jpg")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    records = [
        {"id": "a", "image": "rgb.png", "conversations": [QUESTION, ANSWER]},
        {"id": "b", "conversations": [{"from": "human", "value": "Hi"}, ANSWER]},
        {
            "id": "two",
            "image": ["page.jpg", "gone.jpg"],
            "conversations": [QUESTION, ANSWER, QUESTION, ANSWER],
        },
        {"id": "b", "image": ["rgb.png", "grey.jpg"], "conversations": [QUESTION, QUESTION, ANSWER]},
        {"id": "mute", "conversations": [{"from": "human", "value": "Hi"}]},
        {"id": "marks", "image": "rgb.png", "conversations": [ANSWER]},
        "no record",
        {"id": "a", "image": "rgb.png", "conversations": [QUESTION, {"from": "gpt", "value": "long " * 40}]},
    ]
    path = tmp_path / "mess.json"
    path.write_text(json.dumps(records))
    return path


def test_a_bad_record_whose_id_utf_8_cannot_say_is_written_down(tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "\ud83d", "conversations": [QUESTION, ANSWER]}))
    found = verify_data(open_reader(tmp_path / "data.jsonl"), bad_file=tmp_path / "bad.jsonl")
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert found.bad == 1 and json.loads(line)["id"] == "\ud83d (#0)"


def test_every_bad_record_is_found_with_its_image_and_reason(mess, tmp_path):
    found = verify_data(open_reader(mess), bad_file=tmp_path / "bad.jsonl")
    assert (found.records, found.bad) == (8, 4)
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(line["id"], line["path"]) for line in lines] == [
        ("two (#2)", str(tmp_path / "page.jpg")),
        ("two (#2)", str(tmp_path / "gone.jpg")),
        ("mute (#4)", None),
        ("marks (#5)", None),
        ("#6", None),
    ]
    causes = ["not an image", "No such file", "nothing to learn from", "0 x <image> and 1 image", "got str"]
    assert all(cause in line["reason"] for cause, line in zip(causes, lines, strict=True))


def test_damaged_images_of_each_kind_are_found_and_odd_ones_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)  # Pillow's own limit would take a picture of 180 MB
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    noise.save(tmp_path / "whole.jpg")
    (tmp_path / "truncated.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:600])
    (tmp_path / "zero.png").write_bytes(b"")
    Image.new("1", (150, 150)).save(tmp_path / "bomb.png")
    noise.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "sixteen.png")
    noise.quantize(16).save(tmp_path / "palette.png")
    exif = Image.Exif()
    exif[274] = 6  # rotated
    noise.save(tmp_path / "exif.jpg", exif=exif)
    noise.save(tmp_path / "moving.gif", save_all=True, append_images=[noise.rotate(90)])
    records = [
        {"id": file.name, "image": file.name, "conversations": [QUESTION, ANSWER]}
        for file in sorted(tmp_path.iterdir())
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records))
    found = verify_data(open_reader(path))
    assert found.records == 9
    assert {Path(problem.path).name for problem in found.problems} == {
        "truncated.jpg",
        "zero.png",
        "bomb.png",
    }


def test_what_is_good_is_counted(mess):
    found = verify_data(open_reader(mess))
    assert found.images_per_record == {0: 2, 1: 2, 2: 2}
    assert found.modes == {"RGB": 3, "L": 1}
    assert sorted(map(tuple, np.concatenate(found.sizes).tolist())) == [
        (10, 10),
        (30, 20),
        (30, 20),
        (30, 20),
    ]
    assert [group.tolist() for group in duplicates(found)] == [[0, 7], [1, 3]]


def test_a_model_counts_tokens_and_finds_what_cannot_be_cut(mess, tiny, model_folder):
    reader = open_reader(mess)
    dataset = data.ConversationDataset(reader, tiny.build().processor, max_length=None)
    good = [dataset[index] for index in (0, 1, 3, 7)]
    found = verify_data(reader, model=model_folder)
    assert np.concatenate(found.tokens).tolist() == [len(row["input_ids"]) for row in good]
    assert np.concatenate(found.supervised).tolist() == [int((row["labels"] >= 0).sum()) for row in good]
    assert (found.bad, found.over) == (4, 0)

    cut = verify_data(reader, model=model_folder, max_length=100)
    assert (cut.bad, cut.over) == (4, 1)  # cut in training, but fine
    short = verify_data(reader, model=model_folder, max_length=len(good[0]["input_ids"]) - 1)
    assert short.over == 4 - (len(good[1]["input_ids"]) < len(good[0]["input_ids"]))
    tiny_limit = verify_data(reader, model=model_folder, max_length=3)
    assert any("images end at token" in problem.reason for problem in tiny_limit.problems)
    # Training leaves out the one with text only.
    assert (tiny_limit.bad, tiny_limit.nothing_left) == (7, 1)


def test_the_style_of_training_changes_the_count(tiny, model_folder):
    reader = open_reader(tiny.data)
    chat, plain = (verify_data(reader, model=model_folder, style=style) for style in get_args(Style))
    assert plain.tokens[0].sum() < chat.tokens[0].sum()


@pytest.mark.slow  # two new processes import torch: 10 s on one core
def test_several_processes_find_the_same_in_the_same_order(mess, model_folder):
    reader = open_reader(mess)
    one, two = (verify_data(reader, model=model_folder, workers=workers) for workers in (1, 2))
    assert two.problems == one.problems
    assert np.array_equal(np.concatenate(two.tokens), np.concatenate(one.tokens))


def test_progress_reaches_the_end_and_what_was_found_is_kept_if_it_does_not(mess, tmp_path, monkeypatch):
    seen = []
    verify_data(open_reader(mess), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (8, 8)

    many = tmp_path / "many.jsonl"
    many.write_text("5\n" * 20)
    bad = tmp_path / "bad.jsonl"

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_data(open_reader(many), bad_file=bad, progress=stop)
    assert len(bad.read_text().splitlines()) == 8  # one part


def test_any_error_of_a_record_is_a_finding_and_the_rest_is_looked_at(mess):
    class Fragile(JsonReader):
        def sample(self, index):
            return 1 / 0 if index == 0 else super().sample(index)

    found = verify_data(Fragile(mess))
    assert found.records == 8
    assert found.problems[0].reason == "ZeroDivisionError('division by zero')"


def test_verify_prints_a_table_writes_a_list_and_fails(mess, tmp_path, monkeypatch, model_folder):
    monkeypatch.chdir(tmp_path)
    shown = run("verify", mess, "--model", model_folder, "--max-length", 100)
    assert shown.exit_code == 1
    rows = dict(re.findall(r"^  (\S.*?\S)  +(\S.*?) *$", shown.stdout, re.MULTILINE))
    assert rows["records"] == "8" and rows["bad"] == "4" and rows["text only"] == "2"
    assert rows["several images"] == "2, at most 2" and rows["longer than 100"] == "1"
    assert "nothing left of  " in shown.stdout
    assert rows["ids given more than once"] == "2: a (#0) = a (#7), b (#1) = b (#3)"
    assert "smallest, median, largest    10 x 10, 30 x 20, 30 x 20" in shown.stdout
    assert "4 of 8 records are bad, see mess.bad.jsonl" in shown.stderr
    assert len(Path("mess.bad.jsonl").read_text().splitlines()) == 5


def test_verify_of_good_data_needs_no_model_and_leaves_no_file(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data.bad.jsonl").write_text("of an earlier run\n")
    shown = run("verify", tiny.data)
    assert shown.exit_code == 0
    assert re.search(r"bad +0\b", shown.stdout) and "tokens" not in shown.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "absent.json"], "no such data file: absent.json"),
        (["verify", "DATA", "--max-length", "3"], "--max-length counts tokens, which takes a model"),
        (["verify", "DATA", "--model", "absent"], "no such model folder: absent"),
        (["preview", "DATA", "--model", "absent"], "no such model folder: absent"),
    ],
)
def test_what_a_user_got_wrong_is_one_line(tiny, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    shown = run(*(str(tiny.data) if argument == "DATA" else argument for argument in arguments))
    assert shown.exit_code == 2
    assert shown.stderr.startswith("error: ") and message in shown.stderr


def test_the_command_line_knows_all_formats_and_styles():
    assert {choice.value for choice in DataFormat} == set(get_args(data.Format))
    assert {choice.value for choice in DataStyle} == set(get_args(Style))


# Preview


class Spans(HTMLParser):
    """Collects the text of each token of the page, and whether it is marked as learned."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], None

    def handle_starttag(self, tag, attributes):
        about = dict(attributes)
        self.open = about.get("class") or "" if tag == "span" and "title" in about else None
        if self.open is not None:
            self.found.append(["", self.open == "learned"])

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, text):
        if self.open is not None:
            self.found[-1][0] += text


def chat(tmp_path, answer, name="x"):
    path = tmp_path / "chat.json"
    turns = [{"from": "human", "value": "Hi <b>&amp;"}, {"from": "gpt", "value": answer}]
    path.write_text(json.dumps([{"id": name, "conversations": turns}]))
    return open_reader(path)


def test_the_page_shows_every_token_escaped_and_marks_what_is_learned(tiny, tmp_path):
    reader = chat(tmp_path, "</span><script>alert(1)</script>", name="<i>x</i>")
    page = preview_page(preview_records(reader, tiny.build().processor, [0]), "<u>data</u>")
    assert "<script" not in page and "<i>" not in page and "<u>" not in page
    spans = Spans()
    spans.feed(page)
    assert "".join(text for text, _ in spans.found) == (
        "<s>user: Hi <b>&amp;</s><s>assistant: </span><script>alert(1)</script></s>"
    )
    learned = "".join(text for text, marked in spans.found if marked)
    assert learned == "</span><script>alert(1)</script></s>"


def test_the_page_holds_its_images_and_needs_nothing_else(tiny):
    shown = list(preview_records(open_reader(tiny.data), tiny.build().processor, range(3)))
    page = preview_page(shown, "data.json")
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert "image 1: 20 x 18" in page and "image 1: 4 tokens" in page
    assert not re.search(r"https?:|<link|<script", page)


def test_pieces_are_the_input_and_letters_of_several_tokens_stay_whole(tiny, tmp_path):
    processor = tiny.build().processor
    sample = chat(tmp_path, "Ein Käfer 漢字 😀").sample(0)
    encoded = processor.encode(sample.messages, return_labels=True)
    found = pieces(processor, encoded)
    assert [token for piece in found for token in piece.ids] == encoded["input_ids"].tolist()
    assert "".join(piece.text for piece in found).endswith("assistant: Ein Käfer 漢字 😀</s>")
    assert {len(piece.ids) for piece in found if piece.text in "ä漢😀"} == {2, 3, 4}


def test_a_bad_record_is_shown_with_its_reason(mess, tiny):
    shown = list(preview_records(open_reader(mess), tiny.build().processor, range(8)))
    assert [record.error is None for record in shown] == [i in (0, 1, 3, 7) for i in range(8)]
    assert "not an image, it begins with b&#39;&lt;html&gt;" in preview_page(shown, "mess")


def test_preview_goes_to_the_terminal_or_into_a_file(tiny, model_folder, tmp_path):
    shown = run("preview", tiny.data, "--model", model_folder, "-n", 2)
    assert shown.exit_code == 0
    assert "<s>user: [image 1: 4 tokens]" in shown.stdout and "i1 (#1)" in shown.stdout
    page = tmp_path / "new/page.html"
    written = run("preview", tiny.data, "--model", model_folder, "-n", 99, "--seed", 1, "-o", page)
    assert written.stdout == f"{page}\n"
    names = re.findall(r"<h2>(.*?)</h2>", page.read_text())
    first = [open_reader(tiny.data).name(index) for index in range(12)]
    assert sorted(names) == sorted(first) and names != first


def test_learned_words_are_green_on_a_terminal(tiny):
    from io import StringIO

    from rich.console import Console

    from llavit.data import preview_text

    console = Console(file=StringIO(), force_terminal=True, color_system="standard", width=80)
    (shown,) = preview_records(open_reader(tiny.data), tiny.build().processor, [2])
    console.print(preview_text(shown))
    green = re.findall(r"\x1b\[1;32m(.*?)\x1b\[0m", console.file.getvalue())
    assert "".join(green) == "word word word</s>"


def test_a_record_does_not_steer_the_terminal(tiny, tmp_path, capsys):
    import rich

    from llavit.data import preview_text

    (shown,) = preview_records(chat(tmp_path, "\x1b[2J\rgone"), tiny.build().processor, [0])
    rich.print(preview_text(shown))
    printed = capsys.readouterr().out
    assert (
        "\N{SYMBOL FOR ESCAPE}[2J\N{SYMBOL FOR CARRIAGE RETURN}gone" in printed and "\x1b[2J" not in printed
    )


def test_the_table_fits_data_without_images(tmp_path):
    reader = chat(tmp_path, "Hello")
    table = verify_table(verify_data(reader), reader)
    assert list(table.columns[0].cells) == [
        "records",
        "bad",
        "text only",
        "several images",
        "images",
        "ids given more than once",
    ]


@pytest.mark.slow  # starts the installed command: 10 s on one core
def test_the_installed_command_verifies_with_several_processes(mess, tmp_path):
    command = shutil.which("llavit", path=Path(sys.executable).parent)
    done = subprocess.run(
        [command, "data", "verify", mess, "--workers", "2"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert len((tmp_path / "mess.bad.jsonl").read_text().splitlines()) == 5


class Deadly(JsonReader):
    """Kills the process that reads from it, as the kernel does when memory runs out."""

    def sample(self, index):
        os._exit(9)


@pytest.mark.slow  # starts two processes that import torch: 10 s on one core
def test_a_worker_that_dies_is_an_error_that_says_so(mess):
    with pytest.raises(OSError, match=r"a worker process died, .* try fewer with --workers"):
        verify_data(Deadly(mess), workers=2)
