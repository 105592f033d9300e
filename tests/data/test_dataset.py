import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from llavit import data
from llavit.data import Collator, ConversationDataset, SkipLog, Skipped, open_reader
from llavit.train.data_spec import DataSpec
from llavit.train.schema import build


class WordProcessor:
    """Encodes a sample as one token per message; refuses a sample that says `bad`."""

    def encode(self, messages, *, name, **options):
        if any("bad" in part["text"] for message in messages for part in message["content"]):
            raise ValueError(f"sample {name}: bad picture")
        ids = torch.arange(len(messages))
        return {"input_ids": ids, "image_ids": torch.full_like(ids, -1), "labels": ids}


@pytest.fixture
def reader(tmp_path):
    texts = ["good", "bad", "good", "bad"]
    records = [{"id": i, "conversations": [{"from": "human", "value": text}]} for i, text in enumerate(texts)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    return open_reader(tmp_path / "data.json")


def row(length, *, images=0, start=1, size=2):
    ids = torch.arange(start, start + length)
    sample = {
        "input_ids": ids,
        "image_ids": torch.full_like(ids, -1),
        "labels": ids,
        "sample_id": f"s{start}",
    }
    return sample | ({"pixel_values": torch.full((images, 3, size, size), float(start))} if images else {})


def test_a_bad_record_is_an_error_that_names_it(reader):
    dataset = ConversationDataset(reader, WordProcessor())
    assert dataset[0]["sample_id"] == "0 (#0)"
    with pytest.raises(ValueError, match=r"sample 1 \(#1\): bad picture"):
        dataset[1]


def test_a_skipped_record_leaves_a_smaller_batch_and_its_reason(reader):
    dataset = ConversationDataset(reader, WordProcessor(), on_error="skip")
    batch = Collator(0)([dataset[i] for i in range(3)])
    assert batch["input_ids"].shape == (2, 1)
    assert batch["sample_ids"] == ["0 (#0)", "2 (#2)"]
    assert batch["skipped"] == [Skipped("1 (#1)", "sample 1 (#1): bad picture")]


def test_a_batch_of_bad_records_holds_no_label(reader):
    dataset = ConversationDataset(reader, WordProcessor(), on_error="skip")
    batch = Collator(9)([dataset[1], dataset[3]])
    assert batch["input_ids"].tolist() == [[9]]
    assert batch["labels"].tolist() == [[-100]]
    assert batch["image_ids"].tolist() == [[-1]]
    assert batch["sample_ids"] == []


def test_the_skip_log_counts_a_record_once_and_stops_at_the_maximum(tmp_path):
    path = tmp_path / "skipped.jsonl"
    log = SkipLog(path, max_skipped=2)
    log.add([Skipped("a", "no file"), Skipped("b", "no label"), Skipped("a", "no file")])
    assert len(log) == 2
    with pytest.raises(ValueError, match=r"3 bad records, more than max_skipped = 2. The last is c: torn"):
        log.add([Skipped("c", "torn")])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_record_of_which_nothing_is_left_is_left_out_and_not_bad(tiny, tmp_path, on_error):
    turns = [{"from": "human", "value": "word " * 200}, {"from": "gpt", "value": "Yes."}]
    (tmp_path / "long.json").write_text(json.dumps([{"id": i, "conversations": turns} for i in range(3)]))
    data = ConversationDataset(
        open_reader(tmp_path / "long.json"), tiny.build().processor, max_length=100, on_error=on_error
    )
    log = SkipLog(tmp_path / "skipped.jsonl", max_skipped=0)
    log.add([data[i] for i in range(3)])
    again = SkipLog(tmp_path / "skipped.jsonl", max_skipped=0)
    again.add(log.skipped.values())
    assert len(log) == len(again) == 3 and "(max_length=100)" in log.skipped["0 (#0)"].reason
    with pytest.raises(ValueError, match=r"1 bad records, more than max_skipped = 0. The last is x: torn"):
        again.add([Skipped("x", "torn")])


def test_the_skip_log_takes_an_id_that_utf_8_cannot_say(tmp_path):
    path = tmp_path / "skipped.jsonl"
    SkipLog(path, max_skipped=2).add([Skipped("\ud83d (#0)", "torn")])
    again = SkipLog(path, max_skipped=2)
    again.add([Skipped("\ud83d (#0)", "torn")])
    assert list(again.skipped) == ["\ud83d (#0)"]


def test_the_skip_log_goes_on_where_a_killed_run_left_it(tmp_path):
    path = tmp_path / "skipped.jsonl"
    SkipLog(path, max_skipped=2).add([Skipped("a", "no file")])
    log = SkipLog(path, max_skipped=2)
    log.add([Skipped("a", "no file")])
    assert len(log) == 1
    with pytest.raises(ValueError, match="1 bad records, more than max_skipped = 0"):
        SkipLog(path, max_skipped=0).add([Skipped("a", "no file")])


def test_a_line_that_a_kill_tore_and_odd_characters_do_no_harm(tmp_path):
    path = tmp_path / "skipped.jsonl"
    SkipLog(path, max_skipped=9).add([Skipped("a", "no\u2028file\x85 \n {"), Skipped("b", "torn")])
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    log = SkipLog(path, max_skipped=9)
    assert list(log.skipped.values()) == [Skipped("a", "no\u2028file\x85 \n {")]
    log.add([Skipped("b", "torn"), Skipped("c", "new")])
    assert list(SkipLog(path, max_skipped=9).skipped) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[1, 2, 3], [7, 0, 0]], [[1, 1, 1], [1, 0, 0]]),
        ("left", [[1, 2, 3], [0, 0, 7]], [[1, 1, 1], [0, 0, 1]]),
    ],
)
def test_rows_are_padded_on_the_side_asked_for(side, ids, mask):
    batch = Collator(0, padding_side=side)([row(3), row(1, start=7)])
    assert batch["input_ids"].tolist() == ids
    assert batch["attention_mask"].tolist() == mask
    padding = batch["attention_mask"] == 0
    assert batch["labels"][padding].eq(-100).all()
    assert batch["image_ids"][padding].eq(-1).all()


def test_a_real_token_equal_to_the_padding_token_stays_attended():
    batch = Collator(1)([row(3), row(1)])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_images_are_joined_in_row_order():
    batch = Collator(0)([row(1, images=2, start=5), row(2), row(1, images=1, start=6)])
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [5, 5, 6]


def test_a_batch_may_have_no_image():
    assert "pixel_values" not in Collator(0)([row(1), row(2)])


def test_samples_without_labels_make_a_batch_without_labels():
    samples = [{key: value for key, value in row(2).items() if key != "labels"} for _ in range(2)]
    assert "labels" not in Collator(0, padding_side="left")(samples)


def test_the_readme_runs(tiny, monkeypatch, capsys):
    text = Path(data.__file__).with_name("README.md").read_text()
    block = text.split("```python\n")[1].split("```")[0]
    folder = tiny.data.parent
    (folder / "images").mkdir(exist_ok=True)
    for picture in folder.glob("*.png"):
        shutil.copy(picture, folder / "images")
    monkeypatch.chdir(folder)
    exec(block, {"processor": tiny.build().processor})
    shown = capsys.readouterr().out
    assert "images/0.png" in shown
    assert "'pixel_values': torch.Size([2, 3, 16, 16])" in shown


def test_the_readmes_mixture_is_a_valid_one():
    text = Path(data.__file__).with_name("README.md").read_text()
    block = text.split("```yaml\n")[1].split("```")[0]
    spec = build(DataSpec, yaml.safe_load(block)["data"], "README.md")
    assert [source.weight for source in spec.mixture] == [1, 0.5, 2]
