"""What knock-outs cost: the same asking and judging as the evaluation's, paired intervals, nothing asked twice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from typer.testing import CliRunner

from llavit.cli import app
from llavit.evaluate import evaluate, load_bench, read_tasks
from llavit.evaluate.bench import BenchTask
from llavit.evaluate.intervals import estimate, loss_estimate
from llavit.evaluate.items import Item
from llavit.inspect import Block
from llavit.inspect import knockout as knockout_context
from llavit.inspect.knockouts import NO_IMAGE, WHOLE, measure_knockouts, standard_blocks
from llavit.inspect.knockouts_page import cells, draw
from tests.evaluate.small_bench import save_bench

BLOCKS = [Block("visual_to_visual"), Block("text_to_visual", [0]), Block("visual_v")]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return save_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def model(tiny):
    """A model whose random layers do so much that a knock-out changes most answers."""
    model, processor = tiny.build(dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.normal_(0, 0.3)
    return model.eval(), processor


def test_answers_under_a_knockout_are_those_of_the_evaluation_under_it(model, bench, tmp_path):
    tasks = load_bench(bench, "short,pairs,turned")
    file = tmp_path / "answers.json"
    asked = []
    found = measure_knockouts(
        *model,
        tasks,
        BLOCKS,
        mode="likelihood",
        output=file,
        batch_size=5,
        progress=lambda *now: asked.append(now),
    )
    kept = json.loads(file.read_text())["tasks"]
    changed = 0
    for block in (None, *BLOCKS):
        if block is None:
            expected = evaluate(*model, tasks, mode="likelihood", baselines=["blind"])
            whole = expected
        else:
            with knockout_context(model[0], block):
                expected = evaluate(*model, tasks, mode="likelihood", baselines=[], batch_size=1)
        for key, task in expected["tasks"].items():
            run = kept[key]["runs"][block.name if block else WHOLE]
            assert run["texts"] == [row["text"] for row in task["predictions"]]
            assert run["points"] == task["points"]["model"]
            changed += run["texts"] != kept[key]["runs"][WHOLE]["texts"]
            if block is None:
                blind = kept[key]["runs"][NO_IMAGE]["texts"]
                assert blind == [row["blind"]["text"] for row in task["predictions"]]
    assert changed >= 2  # the knock-outs do something here
    assert asked[-1][1:] == (5 * 26, 5 * 26)
    # Scores and losses are those of the points.
    assert found.families == ["general", "vision_centric", "mean"] and found.items == [20, 6, 26]
    assert found.score_f3[-1, 0] == pytest.approx(whole["mean"]["score"])
    for number, name in enumerate(found.names):
        for family, column in (("general", 0), ("vision_centric", 1)):
            tasks_of = [task for task in kept.values() if task["family"] == family]
            mean = np.mean([np.mean(task["runs"][name]["points"]) for task in tasks_of])
            assert found.loss_kf3[number, column, 0] == pytest.approx(found.score_f3[column, 0] - mean)
    assert (found.loss_kf3[..., 1] <= found.loss_kf3[..., 0]).all()


def test_what_was_asked_is_not_asked_again_and_other_settings_are_refused(model, bench, tmp_path):
    tasks, file = load_bench(bench, "short,forms"), tmp_path / "answers.json"
    first = measure_knockouts(*model, tasks[:1], BLOCKS[:1], output=file)
    ran = []
    hook = model[0].register_forward_hook(lambda *_: ran.append(1))
    again = measure_knockouts(*model, tasks[:1], BLOCKS[:1], output=file)
    assert not ran
    np.testing.assert_array_equal(again.loss_kf3, first.loss_kf3)
    asked = []
    measure_knockouts(
        *model, tasks, BLOCKS[:2], output=file, progress=lambda what, done, _: asked.append((what, done))
    )
    hook.remove()
    of_short = {what for what, _ in asked if what.startswith("short")}
    assert of_short == {f"short: {BLOCKS[1].name}"} and asked[0][1] == 3 * 8
    assert {what.split(": ")[1] for what, _ in asked if what.startswith("forms")} >= {WHOLE, NO_IMAGE}
    with pytest.raises(ValueError, match="limit"):
        measure_knockouts(*model, tasks, BLOCKS[:1], output=file, limit=2)
    with pytest.raises(ValueError, match="at least one task"):
        measure_knockouts(*model, [], BLOCKS)


def test_answers_to_other_items_or_under_another_metric_are_not_taken_for_these(model, tmp_path):
    """Tasks made in memory state no fingerprint; points in the file are those of the metric that was."""
    item = Item("1", None, "Which is it?", "A", "made", options=("cat", "dog"))
    made = BenchTask("made@mine-1", "made", "general", "choice", items=(item,))
    other = replace(made, items=(replace(item, question="Is it this one?"),))
    exact = replace(made, metric="exact")
    for changed, said in ((other, "items of made"), (exact, "metric of made")):
        file = tmp_path / f"{said}.json"
        measure_knockouts(*model, [made], BLOCKS[:1], output=file)
        with pytest.raises(ValueError, match=said):
            measure_knockouts(*model, [changed], BLOCKS[:1], output=file)
    with pytest.raises(ValueError, match="different ids"):
        measure_knockouts(*model, [made, other], BLOCKS[:1])
    with pytest.raises(ValueError, match="expected a mode"):
        measure_knockouts(*model, [made], BLOCKS[:1], mode="likelyhood")


def test_what_of_the_model_is_in_training_stays_so(tiny, bench):
    model, processor = tiny.build(dtype=torch.float32)
    model.train().model.vision_tower.eval()  # as a frozen tower is
    before = {name: module.training for name, module in model.named_modules()}
    measure_knockouts(model, processor, load_bench(bench, "short"), BLOCKS[:1], limit=1)
    assert {name: module.training for name, module in model.named_modules()} == before


def test_a_layer_that_there_is_not_is_told_before_anything_is_asked(model, bench):
    asked = []
    with pytest.raises(ValueError, match="layer 9: there are 2 layers"):
        measure_knockouts(
            *model,
            load_bench(bench, "short"),
            [BLOCKS[0], Block("text_to_visual", [0, 9])],
            progress=lambda *now: asked.append(now),
        )
    assert not asked


def test_questions_that_fail_count_as_wrong_and_are_said(model, tmp_path):
    """Else a run out of memory would look like what a knock-out costs."""
    tasks = load_bench(save_bench(tmp_path), "short")
    tasks[0].items[0].image.write_bytes(b"no picture")
    found = measure_knockouts(*model, tasks, BLOCKS[:1])
    assert found.settings["failed"] == {WHOLE: 1, BLOCKS[0].name: 1}  # without the image it can be asked
    assert f"{WHOLE}: 1 questions failed" in found.body()


def test_what_does_not_apply_to_a_llava_is_listed_with_its_reason(tiny, bench, tmp_path):
    llava = tiny.build(dtype=torch.float32, visual_qkv=False, bidirectional_visual_attention=False)
    blocks = [Block("bidirectional"), Block("visual_qkv"), Block("visual_to_visual")]
    found = measure_knockouts(*llava, load_bench(bench, "short"), blocks, limit=2, name="llava")
    assert set(found.not_applicable) == {"visual to later visual", "visual QKV by text QKV"}
    assert np.isnan(found.loss_kf3[:2]).all() and not np.isnan(found.loss_kf3[2:]).any()
    assert found.unparsed_k[:2].tolist() == [-1, -1]
    page = found.save(tmp_path).read_text()
    assert "not applicable: visual tokens have no projections of their own" in page
    facts = json.loads((tmp_path / "knockout.json").read_text())
    assert facts["names"] == found.names and facts["settings"]["limit"] == 2
    assert set(facts["losses"]) == {"visual to visual", NO_IMAGE}
    assert facts["losses"][NO_IMAGE]["general"]["value"] == pytest.approx(found.loss_kf3[-1, 0, 0], abs=1e-6)
    assert facts["scores"]["general"]["low"] == pytest.approx(found.score_f3[0, 1], abs=1e-6)
    assert cells(found)[0] == ["visual to later visual", "not applicable"]
    llavit = measure_knockouts(*tiny.build(), load_bench(bench, "short"), blocks, limit=2)
    figure = draw([found, llavit])
    assert len(figure.axes) == 1 and len(figure.legends) == 1
    assert len(draw([found] * 9).legends[0].get_texts()) == 9  # more models than colours


def test_models_of_different_depths_are_drawn_together_each_in_its_own_rows(tiny, bench):
    tasks, own = load_bench(bench, "short"), ("visual to visual, layer 0", "visual to visual, layer 1")
    blocks = [[Block("visual_to_visual"), Block("visual_to_visual", range(n, n + 1))] for n in range(2)]
    found = [
        measure_knockouts(*tiny.build(), tasks, each, limit=2, name=str(n)) for n, each in enumerate(blocks)
    ]
    axis = draw(found).axes[0]
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert rows == ["visual to visual", *reversed(own), NO_IMAGE]
    for number, drawn in enumerate(axis.containers):
        places = [rows[round(len(rows) - 1 - y)] for y in drawn[0].get_ydata()]
        assert places == ["visual to visual", own[number], NO_IMAGE]


def test_names_of_models_stand_once_in_a_picture_and_inside_of_it(tiny, bench):
    long = [f"runs/a-model-with-a-long-name-{number}/instruct" for number in range(3)]
    tasks, blocks = load_bench(bench, "short"), [Block("visual_to_visual")]
    found = [measure_knockouts(*tiny.build(), tasks, blocks, limit=2, name=name) for name in long]
    figure = draw(found)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == long
    FigureCanvasAgg(figure).draw()
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert not [axis for axis in figure.axes if axis.get_tightbbox().overlaps(box)]


def test_paired_intervals_are_narrower_than_those_of_two_scores_apart():
    rng = np.random.default_rng(0)
    before = (rng.random(200) < 0.5).astype(float)
    after = np.where(rng.random(200) < 0.2, 0.0, before)  # a few are lost
    paired = loss_estimate({"t": before}, {"t": after})
    apart = [estimate(list(values), "t") for values in (before, after)]
    assert paired.score == pytest.approx(before.mean() - after.mean())
    assert 0 < paired.low < paired.score < paired.high
    assert paired.high - paired.low < 0.6 * max(one.high - one.low for one in apart)
    assert loss_estimate({"t": before}, {"t": before}).as_dict() == {"score": 0, "low": 0, "high": 0}
    with pytest.raises(ValueError, match="same units"):
        loss_estimate({"t": [1.0]}, {"t": [1.0, 0.0]})


def test_standard_blocks_cover_every_layer_once_by_range():
    blocks = standard_blocks(10, None)
    ranges = [block.layers for block in blocks if block.what == "text_to_visual" and block.layers]
    assert sorted(layer for layers in ranges for layer in layers) == list(range(10))
    assert len(standard_blocks(2)) == 3 * 3 + 4
    assert [block.layers for block in standard_blocks(30, [[0, 1], [4]])][:3] == [None, (0, 1), (4,)]


def test_items_of_a_corpus_are_a_task_for_each_kind_of_question(tmp_path, bench):
    rows = [
        {"id": f"{n}", "image": "a.png", "question": "?", "answer": "red", "task": kind}
        for n, kind in enumerate(["place", "colour", "place"])
    ]
    (tmp_path / "a.png").write_bytes((bench / "short/images/00000.png").read_bytes())
    (tmp_path / "test.json").write_text(json.dumps(rows))
    tasks = read_tasks(tmp_path)
    assert [(task.name, task.family, len(task.items)) for task in tasks] == [
        ("colour", "colour", 1),
        ("place", "place", 2),
    ]
    assert [task.name for task in read_tasks(tmp_path / "test.json", "place")] == ["place"]
    assert [task.name for task in read_tasks(bench, "short")] == ["short"]
    before = tasks[1].fingerprint
    rows[0]["answer"] = "blue"
    (tmp_path / "test.json").write_text(json.dumps(rows))
    assert read_tasks(tmp_path)[1].fingerprint != before
    with pytest.raises(ValueError, match="has \\['colour', 'place'\\]"):
        read_tasks(tmp_path, "size")


def test_the_command_sets_two_models_side_by_side_and_goes_on(tiny, bench, tmp_path):
    for name, switches in (
        ("llavit", {}),
        ("llava", {"visual_qkv": False, "bidirectional_visual_attention": False}),
    ):
        built, processor = tiny.build(dtype=torch.float32, **switches)
        built.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    command = ["inspect", "knockout", tmp_path / "llavit", tmp_path / "llava", "--data", bench]
    command += ["--tasks", "short,pairs", "--limit", "2", "--layers", "0,1", "--dtype", "float32"]
    command += ["-o", tmp_path / "out"]
    shown = CliRunner().invoke(app, [str(part) for part in command])
    assert shown.exit_code == 0, shown.output
    assert shown.output.splitlines()[-1] == str(tmp_path / "out/knockout.html")
    assert "llavit: points of accuracy lost" in " ".join(shown.output.split())
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"knockout.html", "knockout.png", "knockout-1.json", "knockout-2.npz", "answers"} <= files
    before = {path: path.read_bytes() for path in (tmp_path / "out/answers").iterdir()}
    assert len(before) == 2
    again = CliRunner().invoke(app, [str(part) for part in command])
    assert again.exit_code == 0 and {path: path.read_bytes() for path in before} == before
    wrong = CliRunner().invoke(app, [str(part) for part in [*command, "--block", "eyes"]])
    assert wrong.exit_code == 2 and "expected one of visual_to_visual" in wrong.output
