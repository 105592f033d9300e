import subprocess
import sys

import pytest
import torch

HEAVY = ("torch", "transformers", "PIL", "numpy")


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("registered")
    model, processor = tiny.build(dtype=torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_importing_llavit_imports_neither_transformers_nor_torch():
    code = f"import sys, llavit; print(*(name for name in {HEAVY} if name in sys.modules))"
    assert run(code) == []


@pytest.mark.parametrize("arguments", ["--help", "eval --help", "data --help", "starter build --help"])
def test_help_imports_neither_transformers_nor_torch(arguments):
    code = (
        "import sys\n"
        "from llavit.cli import app\n"
        f"try: app({arguments.split()})\n"
        f"except SystemExit: print('imported', *(name for name in {HEAVY} if name in sys.modules))"
    )
    assert run(code)[-1] == "imported"


LOAD = """
import sys
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
bare = AutoModel.from_config(AutoConfig.from_pretrained(sys.argv[1]))
print(type(model).__name__, type(bare).__name__, type(AutoProcessor.from_pretrained(sys.argv[1])).__name__)
"""
AUTO = "from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor\n"
ORDERS = {
    "llavit first": f"import llavit\n{AUTO}",
    "transformers first": f"{AUTO}import llavit\n",
    # The class of LLaVA first: transformers' tables are then imported in the middle of an import of ours.
    "a class of llavit first": f"from llavit import LlavitForConditionalGeneration\n{AUTO}",
}
# Torch takes most of the time, and is the same for all of them.
EACH_ALONE = f"""
import os, sys
import torch, torch._dynamo, torch.distributed.tensor
assert not {{"llavit", "transformers"}} & set(sys.modules)
for name, imports in {ORDERS!r}.items():
    if (child := os.fork()) == 0:
        print(name, end=": ")
        exec(imports + {LOAD!r}, {{}})
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_auto_classes_know_llavit_whichever_is_imported_first(folder):
    names = "LlavitForConditionalGeneration LlavitModel LlavitProcessor"
    assert run(EACH_ALONE, folder) == " ".join(f"{order}: {names}" for order in ORDERS).split()


def test_every_public_name_is_found_and_listed():
    import llavit

    assert set(llavit.__all__) <= set(dir(llavit))
    for name in llavit.__all__:
        assert getattr(llavit, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    import llavit

    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = llavit.Nonsense
