import json

import numpy as np
import pytest
from PIL import Image

from llavit.train.plot import draw, loss_curves, plot_losses, smooth
from llavit.train.run import train


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plot") / "llavit"
    train(tiny.recipe("stages.1.steps=1"), output=folder, progress=False)
    return folder


@pytest.fixture
def other(run, tmp_path):
    """A run that is still in its second stage."""
    folder = tmp_path / "llava"
    for stage, losses in (("pretrain", [5, 4, 3]), ("instruct.work", [2.0, 1.0])):
        (folder / stage).mkdir(parents=True)
        rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
        (folder / stage / "train_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    return folder


def test_curves_are_those_of_the_log_in_the_recipes_order(run, other):
    assert list(loss_curves(run)) == ["pretrain", "instruct"]
    assert loss_curves(run)["pretrain"][0] == [1, 2, 3, 4]
    assert loss_curves(other) == {"pretrain": ([1, 2, 3], [5, 4, 3]), "instruct": ([1, 2], [2.0, 1.0])}


def test_a_panel_for_each_stage_and_for_each_run_a_raw_and_a_smoothed_line(run, other):
    figure = draw({"llavit": loss_curves(run), "llava": loss_curves(other)})
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["pretrain", "instruct"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["llavit", "llava"]
    raw, _, smoothed = figure.axes[0].lines[3:]
    assert raw.get_xydata().tolist() == [[1, 5], [2, 4], [3, 3]]
    assert raw.get_linewidth() < smoothed.get_linewidth()
    assert raw.get_color() == smoothed.get_color() != figure.axes[0].lines[0].get_color()


def test_the_picture_is_drawn(run, other, tmp_path):
    picture = plot_losses([run, other], tmp_path / "new/loss.png")
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] > 1000
    for colour in ([0x00, 0x72, 0xB2], [0xD5, 0x5E, 0x00]):  # one of each run
        assert (pixels == colour).all(-1).any()


def test_runs_of_the_same_name_are_told_apart_by_their_folders(run, tmp_path):
    (tmp_path / "again/llavit").mkdir(parents=True)
    (tmp_path / "again/llavit/recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    (tmp_path / "again/llavit/pretrain").mkdir()
    log = (run / "pretrain/train_log.jsonl").read_bytes()
    (tmp_path / "again/llavit/pretrain/train_log.jsonl").write_bytes(log)
    svg = plot_losses([run, tmp_path / "again/llavit"], tmp_path / "loss.svg").read_text()
    assert f"{run.parent.name}/llavit" in svg and "again/llavit" in svg


def test_smoothing_keeps_a_constant_and_averages_noise():
    assert smooth([2.0] * 7, 3) == [2.0] * 7
    assert smooth([1.0], 5) == [1.0]
    noise = np.random.default_rng(0).normal(size=400)
    assert np.std(smooth(noise, 25)) < np.std(noise) / 3


def test_what_is_no_run_or_has_no_steps_yet_says_so(other, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected the folder of a run \(with recipe.yaml\)"):
        loss_curves(tmp_path / "absent")
    for log in other.glob("*/train_log.jsonl"):
        log.write_text("")
    with pytest.raises(FileNotFoundError, match=r"no step in any train_log.jsonl .* pretrain, instruct yet"):
        loss_curves(other)


@pytest.mark.parametrize(
    "line", ['{"step": 2, "lo\n', "[]\n", '{"step": 2}\n', '{"step": 2, "loss": "x"}\n', "\0\0\n"]
)
def test_a_garbled_log_names_file_and_line(other, line):
    log = other / "pretrain/train_log.jsonl"
    log.write_text('{"step": 1, "loss": 5}\n' + line)
    with pytest.raises(
        ValueError, match=r"pretrain/train_log.jsonl, line 2: expected a JSON object with step"
    ):
        loss_curves(other)


def test_a_line_that_a_killed_run_left_unfinished_is_no_error(other):
    with (other / "pretrain/train_log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')
    assert loss_curves(other)["pretrain"][0] == [1, 2, 3]


def test_the_command_draws_and_reports_errors_in_a_line(run, tmp_path):
    from typer.testing import CliRunner

    from llavit.cli import app

    done = CliRunner().invoke(app, ["plot", str(run), "-o", str(tmp_path / "a.png")])
    assert done.exit_code == 0 and (tmp_path / "a.png").is_file()
    wrong = CliRunner().invoke(app, ["plot", str(tmp_path)])
    assert wrong.exit_code == 2 and "expected the folder of a run" in wrong.output
    assert CliRunner().invoke(app, ["plot", str(run), "-o", str(tmp_path / "a.txt2")]).exit_code == 2
