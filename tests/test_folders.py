"""Files that another process writes."""

import threading

import pytest

from llavit.folders import wait_until_seen


def test_what_another_machine_has_written_is_waited_for_until_the_whole_of_it_is_seen(tmp_path):
    folder, file = tmp_path / "result", tmp_path / "result/part.bin"

    def write(size):
        folder.mkdir(exist_ok=True)
        file.write_bytes(b"x" * size)

    writes = [threading.Timer(after, write, [size]) for after, size in ((0.1, 3), (0.3, 8))]
    for timer in writes:
        timer.start()
    wait_until_seen({folder: 0, file: 8}, seconds=60, every=0.01)
    assert file.stat().st_size == 8
    for timer in writes:
        timer.join()


@pytest.mark.parametrize("there", [None, 3])
def test_what_is_never_seen_is_an_error_with_file_machine_and_what_to_do(tmp_path, monkeypatch, there):
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    if there:
        (tmp_path / "part.bin").write_bytes(b"x" * there)
    message = r"part.bin: another process has written it, and after 0.05 seconds .* machine node7\. Put it on storage"
    with pytest.raises(FileNotFoundError, match=message):
        wait_until_seen({tmp_path / "part.bin": 8}, seconds=0.05, every=0.01)
