import re
import sys
import tomllib
import types
from pathlib import Path

import pytest

import llavit.serve.vllm as plugin
from llavit.serve.vllm.version import SUPPORTED, refusal, require_supported


@pytest.mark.parametrize("version", ["0.32.0", "0.32.4", "0.32.0+cpu", "0.32.1.dev7+gabc"])
def test_supported_versions(version):
    assert refusal(version) is None
    require_supported(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.33.0rc1", "1.0", "dev"])
def test_another_version_says_what_to_install(version):
    with pytest.raises(ImportError, match=re.escape(f'got vLLM {version}: pip install "vllm{SUPPORTED}"')):
        require_supported(version)


def test_the_extra_has_the_same_range():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["vllm"] == [f"vllm{SUPPORTED}"]


def test_vllm_finds_the_plugin_by_its_entry_point():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["vllm.general_plugins"]["llavit"].split(":")
    assert getattr(sys.modules[module], name) is plugin.register


def test_with_another_version_other_models_run_and_a_llavit_is_refused(monkeypatch, caplog):
    registered = {}
    other = types.ModuleType("vllm")
    other.__version__ = "0.11.2"
    other.ModelRegistry = types.SimpleNamespace(register_model=registered.__setitem__)
    monkeypatch.setitem(sys.modules, "vllm", other)
    plugin.register()  # no error: vLLM calls it whatever it serves
    assert 'pip install "vllm>=0.32,<0.33"' in caplog.text
    assert registered == {plugin.ARCHITECTURE: f"{plugin.__name__}.inside.model:{plugin.ARCHITECTURE}"}
