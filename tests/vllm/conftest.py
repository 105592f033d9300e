"""Models and references, made once."""

import pytest
import torch

from tests.vllm.parts import LLAVA, Reference, save_tiny

SWITCHES = {
    "llavit": {},
    "visual QKV only": {"bidirectional_visual_attention": False},
    "bidirectional only": {"visual_qkv": False},
    "llava": LLAVA,
}


def pytest_collection_modifyitems(items):
    """All tests of this folder need vLLM."""
    for item in items:
        if item.path.is_relative_to(__file__.rpartition("/")[0]):
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A model for each state of the switches."""
    parent = tmp_path_factory.mktemp("models")
    return {name: save_tiny(parent / name.replace(" ", "-"), **on) for name, on in SWITCHES.items()}


@pytest.fixture(scope="session")
def references(folders):
    """transformers, for each state of the switches."""
    return {name: Reference(folder) for name, folder in folders.items()}
