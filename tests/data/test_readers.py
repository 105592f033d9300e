import json

import pytest

from llavit.data import open_reader

RECORDS = [
    {
        "id": "a",
        "image": "1.jpg",
        "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}],
    },
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"id": 3, "conversations": []},
]


@pytest.fixture
def json_file(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(RECORDS))
    return path


def test_json_and_jsonl_hold_the_same_samples(json_file):
    lines = json_file.with_suffix(".jsonl")
    lines.write_text("\n".join(json.dumps(record) for record in RECORDS) + "\n\n")
    a, b = open_reader(json_file), open_reader(lines)
    assert len(a) == len(b) == 3
    assert [a.sample(i) for i in range(2)] == [b.sample(i) for i in range(2)]


def test_images_lie_beside_the_file_unless_a_folder_is_given(json_file, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    assert open_reader(json_file).sample(0).images == [str(tmp_path / "1.jpg")]
    assert open_reader(json_file, folder).sample(0).images == [str(folder / "1.jpg")]


def test_a_record_is_named_by_id_and_place(json_file):
    reader = open_reader(json_file)
    assert [reader.name(i) for i in range(3)] == ["a (#0)", "#1", "3 (#2)"]
    with pytest.raises(ValueError, match=r"record 3 \(#2\)"):
        reader.sample(2)


def test_limit_reads_the_first_records(json_file):
    assert len(open_reader(json_file, limit=2)) == 2


def test_the_fingerprint_follows_the_records_and_not_the_place(json_file, tmp_path):
    first = open_reader(json_file).fingerprint
    moved = tmp_path / "moved.json"
    moved.write_text(json.dumps(RECORDS))
    assert open_reader(moved).fingerprint == first
    assert open_reader(moved, limit=2).fingerprint != first
    moved.write_text(json.dumps([*RECORDS, RECORDS[1]]))
    assert open_reader(moved).fingerprint != first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.json", "{", "data.json: not valid JSON"),
        ("data.json", "{}", "data.json: expected a list of records, got dict"),
        ("data.json", "[]", "data.json: no records"),
        ("data.jsonl", "{}\n{", "data.jsonl, line 2: not valid JSON"),
        ("data.csv", "", "data.csv: no reader for '.csv', expected one of .json, .jsonl"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_reader(tmp_path / name)


def test_a_missing_file_or_folder_is_named(json_file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such data file: .*absent.json"):
        open_reader(tmp_path / "absent.json")
    with pytest.raises(FileNotFoundError, match=r"no such image folder: .*absent"):
        open_reader(json_file, tmp_path / "absent")
