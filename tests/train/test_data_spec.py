import json

import pytest

from llavit.data import JsonReader, Source
from llavit.train import load_recipe, train

MIXTURE = "stages.{stage}.data={{mixture: [{{path: {a}, weight: 1.5}}, {{path: {b}, limit: 3, weight: 2}}]}}"


@pytest.fixture
def chats(tmp_path):
    """A second data set, without images."""
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"id": f"c{i}", "conversations": turns}) + "\n" for i in range(5)))
    return path


@pytest.fixture
def mixed(tiny, chats):
    def recipe(*overrides):
        both = [MIXTURE.format(stage=stage, a=tiny.data, b=chats) for stage in (0, 1)]
        return tiny.recipe(*both, *overrides)

    return recipe


def test_a_recipe_mixes_data_sets(mixed, tiny, chats, tmp_path):
    recipe = mixed()
    spec = recipe.stages[0].data
    assert spec.mixture == (Source(str(tiny.data), weight=1.5), Source(str(chats), limit=3, weight=2))
    assert len(spec.open(seed=0)) == 18 + 6
    with pytest.raises(FileNotFoundError, match="absent"):  # before anything is trained
        train(mixed("stages.1.data={path: absent.json}"), output=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_format_and_split_reach_the_reader(tiny, tmp_path):
    odd = tmp_path / "records.txt"
    odd.write_bytes(tiny.data.read_bytes())
    with pytest.raises(ValueError, match=r"no reader for '.txt'"):
        tiny.recipe(f"stages.0.data={{path: {odd}}}").stages[0].data.open(0)
    reader = tiny.recipe(f"stages.0.data={{path: {odd}, format: json}}").stages[0].data.open(0)
    assert isinstance(reader, JsonReader)
    with pytest.raises(ValueError, match="got split 'val' and format json"):
        tiny.recipe("stages.0.data.split=val").stages[0].data.open(0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.data.format=csv", r"data.format: expected one of json, jsonl, hf, webdataset, got 'csv'"),
        ("stages.0.data.mixture=[]", r"stages\[0\].data: mixture: each data set brings its own path"),
        ("stages.0.data={mixture: []}", r"stages\[0\].data: mixture: expected at least one data set"),
        ("stages.0.data={mixture: [{weight: 2}]}", r"stages\[0\].data.mixture\[0\].path: missing"),
        ("stages.0.data={mixture: [{path: x, wieght: 2}]}", r"mixture\[0\].wieght: .* did you mean `weight`"),
        (
            "stages.0.data={mixture: [{path: x, weight: -1}]}",
            r"mixture\[0\]: weight: expected a number above 0",
        ),
        ("stages.0.data.limit=0", r"stages\[0\].data: limit: expected more than 0, got 0"),
    ],
)
def test_data_that_makes_no_sense_is_an_error(tiny, override, message):
    with pytest.raises(ValueError, match=message):
        tiny.recipe(override)


def test_a_run_on_a_mixture_resumes_to_the_same_losses(mixed, tmp_path):
    def losses(folder):
        lines = (folder / "pretrain/train_log.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    short = mixed("stages.0.steps=3", "stages.1.steps=1", "stages.0.save_every=1")
    stopped = tmp_path / "cut"
    train(short, output=tmp_path / "whole", progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llavit.train.trainer.LlavitTrainer.training_step", _stop_after(2))
        with pytest.raises(KeyboardInterrupt):
            train(short, output=stopped, progress=False)
    train(short, output=stopped, progress=False)
    assert losses(stopped) == losses(tmp_path / "whole")


def _stop_after(steps):
    """Let the trainer take so many steps, then stop it as Ctrl-C does."""
    from llavit.train.trainer import LlavitTrainer

    original = LlavitTrainer.training_step

    def step(self, *args, **kwargs):
        if self.state.global_step == steps:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    return step


def test_another_weight_is_another_training(mixed, tmp_path):
    short = ("stages.0.steps=1", "stages.1.steps=1")
    train(mixed(*short), output=tmp_path / "run", progress=False)
    train(mixed(*short), output=tmp_path / "run", progress=False)  # finished: nothing to do
    changed = "stages.0.data.mixture.0.weight=1"
    with pytest.raises(ValueError, match=r"pretrain comes from another training:\s+stage.data.records: "):
        train(mixed(*short, changed), output=tmp_path / "run", progress=False)
