"""Scores over HTTP: those of the model in this process, question by question."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from llavit import Engine
from llavit.cli import app
from llavit.evaluate import ServedAsker, evaluate, evaluate_served, load_bench, read_result
from llavit.evaluate.served import data_url
from llavit.evaluate.table import markdown
from llavit.model.images import load_image
from tests.evaluate.small_bench import save_bench
from tests.serve.http_parts import running


@pytest.fixture(scope="module")
def built(tiny):
    torch.manual_seed(3)
    made = tiny.build(dtype=torch.float32)
    for parameter in made.model.parameters():  # else all answers are alike
        parameter.data += 0.15 * torch.randn_like(parameter)
    made.model.eval()
    return made


@pytest.fixture(scope="module")
def server(built):
    with (
        Engine(built.model, built.processor, max_batch=4, max_queue=64) as engine,
        running(engine, api_key="secret") as served,
    ):
        yield served


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return save_bench(tmp_path_factory.mktemp("bench"))


def texts(result):
    return {
        (name, row["id"], who): (row if who == "model" else row[who])["text"]
        for name, task in result["tasks"].items()
        for row in task["predictions"]
        for who in ("model", "blind", "shuffled")
    }


def test_a_served_model_gives_the_answers_and_scores_of_the_model_itself(built, server, bench):
    tasks = load_bench(bench)
    here = evaluate(built.model, built.processor, tasks, batch_size=5)
    there = evaluate_served(f"{server.url}/v1", tasks, api_key="secret", requests=3)
    assert texts(there) == texts(here) and len(set(texts(here).values())) > 5
    for name, task in here["tasks"].items():
        for key in ("score", "low", "high", "points", "baselines", "failed", "unparsed"):
            assert there["tasks"][name][key] == task[key], (name, key)
    assert there["mean"] == here["mean"]
    assert there["settings"] == {**here["settings"], "model": "served as tiny", "dtype": "the server's"}
    assert "Model served as tiny, llavit" in markdown([there])


def test_a_run_over_http_goes_on_where_it_stopped(server, bench, tmp_path):
    output, seen = tmp_path / "run.json", []
    options = {"api_key": "secret", "output": output, "baselines": (), "limit": 2}
    first, *rest = load_bench(bench)
    evaluate_served(f"{server.url}/v1", [first], **options)
    evaluate_served(
        f"{server.url}/v1", [first, *rest], **options, finished=lambda name, task: seen.append(name)
    )
    assert seen == [task.id for task in rest]
    assert read_result(output)["complete"]


def test_an_item_that_the_server_refuses_has_the_reason_and_no_score(server, bench, tmp_path):
    (task,) = load_bench(bench, "short")
    item, *others = task.items
    broken = tmp_path / "broken.png"
    broken.write_bytes(item.image.read_bytes()[:60])
    asker = ServedAsker(f"{server.url}/v1", api_key="secret")
    unreadable = ServedAsker.generate(asker, [item, *others[:1]], [broken, "own"], 4)
    assert unreadable[0].text is None and unreadable[0].error.startswith("status 400: ")
    assert unreadable[1].text is not None
    (absent,) = asker.generate([item], [tmp_path / "absent.png"], 4)
    assert absent.text is None and absent.error.startswith("FileNotFoundError")


def test_a_server_that_goes_away_stops_the_run_and_is_no_wrong_answer(built, bench):
    (task,) = load_bench(bench, "short")
    with Engine(built.model, built.processor) as engine:
        with running(engine) as served:
            asker = ServedAsker(f"{served.url}/v1")
        asker.client = asker.client.with_options(max_retries=0)
        with pytest.raises(ConnectionError, match="stopped answering"):
            asker.generate(task.items, ["own"] * len(task.items), 4)


@pytest.mark.parametrize("change", [{"api_key": "revoked"}, {"model": "another"}])
def test_a_server_that_no_longer_knows_key_or_model_stops_the_run_and_is_no_wrong_answer(
    server, bench, change
):
    (task,) = load_bench(bench, "short")
    asker = ServedAsker(f"{server.url}/v1", api_key="secret")
    if "api_key" in change:
        asker.client = asker.client.with_options(**change)
    else:
        asker.model = change["model"]
    with pytest.raises(ConnectionError, match=r"status 40[14]"):
        asker.generate(task.items, ["own"] * len(task.items), 4)


def test_a_format_that_the_web_has_no_name_for_is_sent_as_png(tmp_path):
    picture = Image.new("RGB", (4, 4), "red")
    picture.save(tmp_path / "a.dds")
    assert Image.open(tmp_path / "a.dds").format not in Image.MIME
    url = data_url(str(tmp_path / "a.dds"))
    assert url.startswith("data:image/png;base64,") and load_image(url).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://127.0.0.1:9/v1"], "no server answers at http://127.0.0.1:9/v1"),
        (["URL", "--api-key", "wrong"], "/v1/models: "),
        (["URL", "--api-key", "secret", "--served-name", "other"], "['tiny'], got 'other'"),
        (["URL", "--mode", "likelihood"], "--mode is not for a server"),
        (["URL", "--dtype", "float32"], "--dtype is not for a server"),
    ],
)
def test_what_cannot_be_asked_is_an_error_with_what_to_do(arguments, message, server, bench, tmp_path):
    words = [f"{server.url}/v1" if word == "URL" else word for word in arguments]
    shown = CliRunner().invoke(
        app, ["eval", *words, "--bench", str(bench), "--tasks", "short", "-o", str(tmp_path / "x.json")]
    )
    assert shown.exit_code == 2 and message in shown.stderr


def test_the_command_scores_what_an_address_serves(server, bench, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAVIT_API_KEY", "secret")
    output = tmp_path / "run.json"
    arguments = ["eval", f"{server.url}/v1", "--bench", str(bench), "--tasks", "short", "-o", str(output)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.stderr
    assert json.loads(output.read_text())["name"] == "tiny"
    shown = CliRunner().invoke(app, arguments[:-2])
    assert shown.exit_code == 2 and "say where the results go: --output" in shown.stderr
