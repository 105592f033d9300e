"""Compiled layers: the same losses, and a plain word where nothing can be compiled."""

import subprocess
import sys
from dataclasses import replace

import pytest

from llavit.train.progress import read_step_log
from llavit.train.run import train

WORKS = pytest.mark.usefixtures("compiler")


@WORKS
@pytest.mark.parametrize(
    "stages",
    [
        ["instruct"],
        pytest.param(["pretrain", "instruct"], marks=pytest.mark.slow),  # other weights train: compiled anew
    ],
    ids="+".join,
)
def test_compiled_layers_give_the_same_losses_for_rows_of_any_length(tiny, tmp_path, stages):
    # Rows of other lengths and numbers of visual tokens in every step, text-only records among them.
    overrides = [f"stages.{stage}.{key}" for stage in stages for key in ("batch_size=2", "steps=4")]
    losses = []
    for wanted in ("never", "always"):
        recipe = tiny.recipe(f"compile={wanted}", *overrides)
        recipe = replace(recipe, stages=tuple(stage for stage in recipe.stages if stage.name in stages))
        train(recipe, output=tmp_path / wanted, progress=False)
        logs = [read_step_log(tmp_path / wanted / stage / "train_log.jsonl") for stage in stages]
        losses.append([row["loss"] for rows in logs for row in rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)  # float32: sums in another order
    assert len(losses[0]) == 4 * len(stages)


def test_without_a_compiler_auto_goes_on_and_always_says_what_to_do(tmp_path):
    script = (
        "from llavit.train.compiling import compile_layers\n"
        "assert compile_layers(None, 'auto') is False\n"
        "try:\n    compile_layers(None, 'always')\n"
        "except RuntimeError as error:\n    print(error)\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "CXX": "absent-compiler", "HOME": str(tmp_path)}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "install a C++ compiler" in done.stdout
