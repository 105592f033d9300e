import re
import subprocess
import sys

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from llavit import __version__, ask
from llavit.cli import app
from llavit.train.stopping import EXIT_STATUS, Stopped

runner = CliRunner()


def run(*arguments, typed=None):
    return runner.invoke(app, [str(argument) for argument in arguments], input=typed)


@pytest.fixture(scope="module")
def model_folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, processor = tiny.build(dtype=torch.float32)
    model.generation_config.max_new_tokens = None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def picture(tiny):
    return tiny.data.parent / "0.png"


@pytest.mark.parametrize(
    ("end", "status", "left"),
    [
        (None, 0, 1),
        (Stopped("told to stop"), EXIT_STATUS, 1),
        (ValueError("bad record"), 2, 0),
        (KeyError(), 1, 0),
    ],
)
def test_training_waits_for_other_processes_only_where_all_of_them_come_to_an_end(
    tiny, monkeypatch, end, status, left
):
    def train(*args, **kwargs):
        if end is not None:
            raise end
        return "runs/one"

    calls = []
    monkeypatch.setattr("llavit.train.run.train", train)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: calls.append(1))
    assert run("train", tiny.recipe_file).exit_code == status
    assert len(calls) == left


def test_train_prints_the_folder_of_the_result(tiny, tmp_path):
    shown = run(
        "train",
        tiny.recipe_file,
        "--set",
        "stages.0.steps=1",
        "--set",
        "stages.1.steps=1",
        "--output",
        tmp_path,
    )
    assert shown.exit_code == 0
    assert shown.stdout == f"{tmp_path / 'instruct'}\n"
    assert (tmp_path / "instruct/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.yaml"], "no such recipe file: absent.yaml"),
        (["train", "RECIPE", "--set", "stages.0.stepz=3"], "unknown key, did you mean `steps`"),
        (["train", "RECIPE", "--set", "stages.0.data.path=absent.json"], "no such data file: absent.json"),
        (["train", "RECIPE", "--set", "model.vision_feature_layer=9"], "the tower has layers -4 to 3"),
        (["ask", "absent", "PICTURE", "What?"], "no such model folder: absent"),
        (["ask", "MODEL", "absent.png", "What?"], "no such image: absent.png"),
        (["ask", "MODEL", "RECIPE", "What?"], "cannot read image"),
        (["chat", "absent"], "no such model folder: absent"),
        (["chat", "MODEL", "absent.png"], "no such image: absent.png"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_and_exit_code_2(
    tiny, model_folder, picture, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    places = {"RECIPE": tiny.recipe_file, "MODEL": model_folder, "PICTURE": picture}
    shown = run(*(places.get(argument, argument) for argument in arguments))
    assert shown.exit_code == 2
    assert shown.stdout == ""
    errors = [line for line in shown.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("works", "arguments"),
    [
        ("llavit.demo.run_demo", ["demo"]),
        ("llavit.train.run.train", ["train", "demo"]),
        ("llavit.compare.run.run_grid", ["compare", "tiny"]),
    ],
)
def test_what_was_told_to_stop_says_so_in_one_line(tmp_path, monkeypatch, works, arguments):
    def stops(*_, **__):
        raise Stopped("stage pretrain was told to stop and saved step 3 of 9")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(works, stops)
    shown = run(*arguments)
    assert shown.exit_code == EXIT_STATUS
    assert (shown.stdout, shown.stderr) == ("", "stage pretrain was told to stop and saved step 3 of 9\n")


def test_a_traceback_is_there_for_those_who_ask(tmp_path):
    shown = run("--traceback", "train", tmp_path / "absent.yaml")
    assert isinstance(shown.exception, FileNotFoundError)


def test_a_bug_is_not_taken_for_a_mistake_of_the_user(monkeypatch):
    monkeypatch.setattr("llavit.train.recipe.shipped_recipes", lambda: 1 / 0)
    assert isinstance(run("train", "starter").exception, ZeroDivisionError)


def test_recipes_lists_names_and_what_they_are_for():
    shown = run("recipes")
    assert shown.exit_code == 0
    assert re.search(r"^starter +The starter: both stages", shown.stdout, re.MULTILINE)
    assert "llava15-llavit-vicuna-7b " in shown.stdout


def test_ask_prints_the_answer_and_nothing_else(model_folder, picture):
    shown = run("ask", model_folder, picture, "What?", "--max-new-tokens", "4")
    answer = "".join(ask.Chat.load(model_folder, max_new_tokens=4).ask("What?", [picture]))
    assert shown.exit_code == 0
    assert shown.stdout == f"{answer}\n"
    assert shown.stderr == ""


def test_chat_answers_shows_images_starts_over_and_leaves(model_folder, picture):
    typed = f"Hi\n/image absent.png\n/image {picture}\nWhat?\n/what\n/reset\n/quit\nnever asked\n"
    shown = run("chat", model_folder, picture, "--max-new-tokens", "2", typed=typed)
    assert shown.exit_code == 0
    assert shown.stdout.count(ask.HELP) == 2  # at the start, and for /what
    assert "cannot read image 'absent.png'" in shown.stdout
    assert "the image goes with your next question" in shown.stdout
    assert "starting over" in shown.stdout


def test_a_chat_remembers_what_was_said_and_shown(model_folder, picture):
    chat = ask.Chat.load(model_folder, max_new_tokens=3)
    first = "".join(chat.ask("What?", [picture]))
    second = "".join(chat.ask("And now?"))
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "user", "assistant"]
    assert [message["content"][-1]["text"] for message in chat.messages] == [
        "What?",
        first,
        "And now?",
        second,
    ]
    fresh = ask.Chat.load(model_folder, max_new_tokens=3)
    fresh.messages = chat.messages[:2]
    assert "".join(fresh.ask("And now?")) == second
    chat.reset()
    assert chat.messages == []
    assert "".join(chat.ask("What?", [picture])) == first


def test_an_answer_comes_in_pieces_and_may_be_left_early(model_folder, picture):
    chat = ask.Chat.load(model_folder, max_new_tokens=200)
    answer = chat.ask("Tell me a story of many words.", [picture])
    piece = next(answer)
    answer.close()
    assert chat.messages[-1]["content"][0]["text"] == piece


def test_a_question_that_fails_leaves_the_conversation_as_it_was(model_folder, picture):
    chat = ask.Chat.load(model_folder, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"cannot read image 'absent.png'"):
        chat.ask("What?", ["absent.png"])
    with chat.engine.exclusive() as model, torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        "".join(chat.ask("What?", [picture]))
    assert chat.messages == []


def test_the_command_line_is_there_before_torch():
    # Of the package only the commands, not its front, which imports torch.
    code = (
        "import importlib.util as u, sys; sys.modules['llavit'] = u.module_from_spec(u.find_spec('llavit')); "
        "from llavit.cli import app; from typer.testing import CliRunner; "
        "shown = CliRunner().invoke(app, ['--help']); "
        "assert shown.exit_code == 0 and 'recipes' in shown.stdout and 'data' in shown.stdout, shown; "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_ctrl_c_before_an_answer_has_begun_ends_the_question_and_not_the_conversation():
    class Interrupted:
        def ask(self, text, images):
            raise KeyboardInterrupt

    written = []
    ask.converse(Interrupted(), ["What?", "And now?"], written.append)
    assert written == ["\n", "\n"]


def test_the_version_is_shown():
    shown = run("--version")
    assert shown.exit_code == 0 and shown.stdout == f"llavit {__version__}\n"


def test_every_argument_and_option_is_explained():
    def silent(command, path):
        for name, sub in getattr(command, "commands", {}).items():
            yield from silent(sub, [*path, name])
        yield from (f"{' '.join(path)}: {each.name}" for each in command.params if not each.help)

    assert not list(silent(get_command(app), ["llavit"]))
