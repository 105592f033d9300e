import json
import os
import pickle
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from llavit.data import Mixture, Source, open_mixture, open_reader
from llavit.data.readers import json_file

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
def json_file_of_three(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(RECORDS))
    return path


def test_json_and_jsonl_hold_the_same_samples(json_file_of_three):
    lines = json_file_of_three.with_suffix(".jsonl")
    lines.write_text("\n".join(json.dumps(record) for record in RECORDS) + "\n\n")
    a, b = open_reader(json_file_of_three), open_reader(lines)
    assert len(a) == len(b) == 3
    assert [a.sample(i) for i in range(2)] == [b.sample(i) for i in range(2)]
    assert a.fingerprint == b.fingerprint


def random_json(rng, depth=0):
    """Values whose text is full of what a scanner may trip over."""
    kind = rng.randrange(6 if depth < 4 else 3)
    if kind == 0:
        return "".join(rng.choice('ab"\\{}[],: \n\té漢😀') for _ in range(rng.randrange(12)))
    if kind == 1:
        return rng.choice([None, True, False, 0, -1.5e-7, 10**20])
    if kind in (2, 3):
        return [random_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {f'k"{i}\\': random_json(rng, depth + 1) for i in range(rng.randrange(4))}


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_records_are_found_wherever_the_scan_cuts_the_file(tmp_path, monkeypatch, chunk, ascii_only, indent):
    monkeypatch.setattr(json_file, "_CHUNK", chunk)
    rng = random.Random(0)
    records = [{"id": i, "x": random_json(rng)} for i in range(30)] + [12, "text", [1, [2]], None]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    reader = open_reader(path)
    assert [reader._record(i) for i in range(len(reader))] == records


def test_a_byte_order_mark_windows_line_ends_and_white_space_do_no_harm(tmp_path):
    body = " ,\r\n\t ".join(json.dumps(record) for record in RECORDS)
    (tmp_path / "data.json").write_bytes(b"\xef\xbb\xbf\r\n [ " + body.encode() + b" ]\r\n")
    lines = b"\xef\xbb\xbf" + b"\r\n\r\n ".join(json.dumps(record).encode() for record in RECORDS)
    (tmp_path / "data.jsonl").write_bytes(lines)
    a, b = open_reader(tmp_path / "data.json"), open_reader(tmp_path / "data.jsonl")
    assert [r.name(i) for r in (a, b) for i in range(3)] == ["a (#0)", "#1", "3 (#2)"] * 2
    assert a.fingerprint == b.fingerprint


def test_content_decides_between_a_list_and_lines(tmp_path):
    (tmp_path / "lines.json").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    (tmp_path / "list.jsonl").write_text(json.dumps(RECORDS, indent=1))
    (tmp_path / "records.txt").write_text(json.dumps(RECORDS))
    for name in ("lines.json", "list.jsonl"):
        assert len(open_reader(tmp_path / name)) == 3
    assert len(open_reader(tmp_path / "records.txt", format="json")) == 3


def test_memory_does_not_grow_with_the_records(tmp_path):
    # 20 MB of records: as Python objects they would take about 30 MB, here 16 bytes each and a window.
    turns = [{"from": "human", "value": "word " * 100}, {"from": "gpt", "value": "word " * 100}]
    path = tmp_path / "big.json"
    record = json.dumps({"id": "1", "conversations": turns})
    path.write_text("[" + ",\n".join([record] * 20_000) + "]")
    assert path.stat().st_size > 20_000_000
    chunk = json_file._CHUNK
    tracemalloc.start()
    reader = open_reader(path)
    opened = tracemalloc.get_traced_memory()
    for index in range(0, len(reader), 100):
        reader.sample(index)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(reader) == 20_000
    assert opened[0] < 20_000 * 16 + 200_000  # two offsets each; the rest is the reader itself
    assert opened[1] < 5 * chunk  # the window, and its copies as it moves
    assert kept < opened[0] + 100_000  # one record


def test_a_bad_line_is_one_bad_record(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join([json.dumps(RECORDS[0]).encode(), b'{"id": ', b'{"id": "\xff"}', b"5"]))
    reader = open_reader(path)
    assert reader.sample(0).record_id == "a"
    for index, why in [
        (1, "Expecting value"),
        (2, "can't decode byte 0xff"),
        (3, "expected an object, got int"),
    ]:
        with pytest.raises(ValueError, match=rf"record #{index}.*{why}"):
            reader.sample(index)
        assert reader.name(index) == f"#{index}"


def test_a_file_that_changes_under_the_reader_is_an_error_that_names_the_record(json_file_of_three):
    reader = open_reader(json_file_of_three)
    json_file_of_three.write_text(json.dumps(RECORDS, indent=7))
    with pytest.raises(ValueError, match=r"record #2 at byte \d+ of .*data.json: not valid JSON"):
        reader.sample(2)


def test_images_lie_beside_the_file_unless_a_folder_is_given(json_file_of_three, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    assert open_reader(json_file_of_three).sample(0).images == [str(tmp_path / "1.jpg")]
    assert open_reader(json_file_of_three, folder).sample(0).images == [str(folder / "1.jpg")]


def test_a_record_is_named_by_id_and_place(json_file_of_three):
    reader = open_reader(json_file_of_three)
    assert [reader.name(i) for i in range(3)] == ["a (#0)", "#1", "3 (#2)"]
    with pytest.raises(ValueError, match=r"record 3 \(#2\)"):
        reader.sample(2)


def test_limit_reads_the_first_records(json_file_of_three):
    assert len(open_reader(json_file_of_three, limit=2)) == 2
    with pytest.raises(ValueError, match="limit: expected more than 0, got 0"):
        open_reader(json_file_of_three, limit=0)


def test_the_fingerprint_follows_the_records_and_not_the_place(json_file_of_three, tmp_path):
    first = open_reader(json_file_of_three).fingerprint
    moved = tmp_path / "moved.json"
    moved.write_text(json.dumps(RECORDS))
    assert open_reader(moved).fingerprint == first
    moved.write_text(" [\n" + ",\n\n".join(map(json.dumps, RECORDS)) + "]\n")
    assert open_reader(moved).fingerprint == first
    assert open_reader(moved, limit=2).fingerprint != first
    moved.write_text(json.dumps([*RECORDS, RECORDS[1]]))
    assert open_reader(moved).fingerprint != first
    assert open_reader(moved, limit=3).fingerprint == first
    moved.write_text(json.dumps(RECORDS[::-1]))
    assert open_reader(moved).fingerprint != first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.json", "{", "data.json: expected a JSON list of records, .* begins with '{'"),
        ("data.json", "{}", "data.json: expected a JSON list of records, .* begins with '{}'"),
        ("data.json", "[]", "data.json: no records"),
        ("data.json", "", "data.json: expected a JSON list of records"),
        ("data.jsonl", "\n\n", "data.jsonl: no records"),
        ("data.json", '[{"id": 1}, {"id": }]', "record #1, at byte 12: Expecting value; got '{"),
        (
            "data.json",
            '[{"id": 1}, {"id": 2}',
            "after record #1, at byte 21, expected a comma .* end of the file",
        ),
        ("data.json", '[{"id": 1}, {"id": "tw', "record #1, at byte 12: Unterminated string"),
        ("data.json", '[{"id": 1}, ]', "record #1, at byte 12: Expecting value; got ']'"),
        ("data.json", '[{"id": 1} {"id": 2}]', "after record #0, at byte 11, expected a comma .* got '{"),
        ("data.json", '[{"id": 1}] x', "expected nothing after the list, got 'x' at byte 12"),
        (
            "data.csv",
            "",
            "data.csv: no reader for '.csv', expected .json, .jsonl, .parquet, .tar or a folder",
        ),
    ],
)
def test_an_unreadable_file_is_named_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_reader(tmp_path / name)


def test_missing_data_is_named(json_file_of_three, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such data file: .*absent.json"):
        open_reader(tmp_path / "absent.json")
    with pytest.raises(FileNotFoundError, match=r"no such image folder: .*absent"):
        open_reader(json_file_of_three, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: expected a folder of a Hugging Face data set"):
        open_reader(tmp_path / "empty")
    with pytest.raises(ValueError, match="only Hugging Face data sets have splits, got split 'val'"):
        open_reader(json_file_of_three, split="val")


def test_a_reader_can_be_sent_to_a_worker(json_file_of_three):
    reader = open_reader(json_file_of_three)
    reader.sample(0)
    again = pickle.loads(pickle.dumps(reader))
    assert again.sample(0) == reader.sample(0)
    assert (len(again), again.fingerprint) == (3, reader.fingerprint)


def test_a_file_is_opened_once_in_a_process_and_closed_with_its_reader(json_file_of_three, monkeypatch):
    opened, files = [], os.open

    def counting(*args):
        opened.append(files(*args))
        return opened[-1]

    reader = open_reader(json_file_of_three)
    monkeypatch.setattr(os, "open", counting)
    for index in (0, 1, 0, 1):
        reader.sample(index)
    assert len(opened) == 1
    again = pickle.loads(pickle.dumps(reader))
    assert again.sample(1) == reader.sample(1)
    assert len(opened) == 2  # the other process's
    del reader, again
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_an_open_file_is_read_by_threads_and_forks_at_once(tmp_path):
    reader = open_reader(numbered(tmp_path, "a", 300))
    reader.sample(7)
    order = [(7 * i) % 300 for i in range(1200)]
    fork = os.fork()
    if not fork:
        os._exit(any(reader.sample(i).record_id != f"a{i}" for i in order))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda i: reader.sample(i).record_id, order)) == [f"a{i}" for i in order]
    assert os.waitpid(fork, 0)[1] == 0


# Mixtures


def numbered(tmp_path, name, count):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    records = [{"id": f"{name}{i}", "conversations": turns} for i in range(count)]
    path = tmp_path / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


@pytest.fixture
def sources(tmp_path):
    return [
        Source(numbered(tmp_path, "a", 10), weight=2),
        Source(numbered(tmp_path, "b", 8), weight=0.5),
        Source(numbered(tmp_path, "c", 6), weight=1.5, limit=4),
    ]


def used(mixture):
    ids = [mixture.sample(i).record_id for i in range(len(mixture))]
    return {record: ids.count(record) for record in ids}


def test_a_weight_is_how_often_a_record_is_used(sources):
    mixture = open_mixture(sources, seed=0)
    counts = used(mixture)
    assert len(mixture) == 20 + 4 + 6
    assert [counts[f"a{i}"] for i in range(10)] == [2] * 10
    assert sorted(counts.get(f"b{i}", 0) for i in range(8)) == [0] * 4 + [1] * 4
    assert sorted(counts.get(f"c{i}", 0) for i in range(6)) == [0, 0, 1, 1, 2, 2]


def test_the_seed_decides_which_records_a_fraction_takes(sources):
    first, again, other = (open_mixture(sources, seed=seed) for seed in (0, 0, 1))
    assert used(first) == used(again)
    assert first.fingerprint == again.fingerprint
    assert used(first) != used(other)
    assert first.fingerprint != other.fingerprint
    whole = [Source(source.path, weight=2) for source in sources]
    assert open_mixture(whole, seed=0).fingerprint == open_mixture(whole, seed=1).fingerprint


def test_a_mixture_names_the_source_and_is_read_in_any_order(sources):
    mixture = open_mixture(sources, seed=0)
    again = pickle.loads(pickle.dumps(mixture))
    order = random.Random(0).sample(range(len(mixture)), len(mixture))
    assert [mixture.name(i) for i in range(3)] == ["a.jsonl: a0 (#0)", "a.jsonl: a1 (#1)", "a.jsonl: a2 (#2)"]
    assert mixture.name(13) == mixture.name(3)  # the second time
    assert mixture.name(20).startswith("b.jsonl: b")
    names = {i: again.sample(i).id for i in order}
    assert names == {i: mixture.name(i) for i in range(len(mixture))}
    with pytest.raises(IndexError):
        mixture.name(len(mixture))


def test_sources_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "x").mkdir()
    a, b = numbered(tmp_path, "a", 1), numbered(tmp_path / "x", "a", 1)
    assert open_mixture([Source(a), Source(b)], seed=0).names == [a, b]
    assert open_mixture([Source(a), Source(a)], seed=0).names == [f"{a} [0]", f"{a} [1]"]


def test_a_bad_record_of_a_mixture_names_its_source(json_file_of_three):
    mixture = open_mixture([Source(str(json_file_of_three))], seed=0)
    with pytest.raises(ValueError, match=r"data.json: record 3 \(#2\): expected a non-empty list"):
        mixture.sample(2)


def test_a_mixture_that_makes_no_sense_is_an_error(sources, tmp_path):
    with pytest.raises(ValueError, match="weight: expected a number above 0, got 0"):
        Source("x.json", weight=0)
    with pytest.raises(ValueError, match=r"b\.jsonl: nothing is left of 8 records with weight 0\.01"):
        open_mixture([Source(sources[1].path, weight=0.01)], seed=0)
    with pytest.raises(ValueError, match=r"got 0 reader\(s\), 1 weight"):
        Mixture([], [1], [], seed=0)
