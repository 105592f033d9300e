"""The digest of the weights that a recipe starts from."""

from llavit.train import weights
from llavit.train.weights import weights_digest


def test_a_digest_goes_with_the_weights_and_not_with_their_place(tiny, tmp_path):
    file = tmp_path / "elsewhere/model.safetensors"
    file.parent.mkdir()
    file.write_bytes((tiny.llm / "model.safetensors").read_bytes())
    assert weights_digest(str(file.parent)) == weights_digest(str(tiny.llm)) is not None
    file.write_bytes(file.read_bytes()[:-4] + bytes(4))
    assert weights_digest(str(file.parent)) != weights_digest(str(tiny.llm))


def test_adapters_count_and_what_has_no_weights_has_no_digest(tmp_path):
    assert weights_digest(str(tmp_path)) is weights_digest("org/name") is None
    found = []
    (tmp_path / "adapter").mkdir()
    for name in (
        "adapter/adapter_model.safetensors",
        "trained.safetensors",
        "pytorch_model-00001-of-00001.bin",
    ):
        (tmp_path / name).write_bytes(b"weights")
        found.append(weights_digest(str(tmp_path)))
    assert len(set(found)) == 3 and None not in found


def test_of_a_large_file_a_piece_of_each_mebibyte_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_WHOLE", 100)
    file = tmp_path / "model.safetensors"
    found = []
    for place in (None, 3 * 2**20 + 5, 3 * 2**20 + 5000):
        content = bytearray(4 * 2**20)
        if place is not None:
            content[place] = 1
        file.write_bytes(content)
        found.append(weights_digest(str(tmp_path)))
    assert found[0] != found[1] and found[0] == found[2]
