"""All Markdown: links and anchors lead somewhere, commands have the options that they use, result files are named."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from llavit.cli import app
from llavit.train import load_recipe
from llavit.train.recipe import shipped_recipes

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "src", "results", "benchmarks")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them in addresses."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text("utf-8")), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found


def links(page: Path) -> list[str]:
    """Links and pictures of a page that are not on the web."""
    words = FENCED.sub("", page.read_text("utf-8"))
    found = [*re.findall(r"\]\(([^)\s]+)\)", words), *re.findall(r'<img src="([^"]+)"', words)]
    return [link for link in found if not re.match(r"https?:", link)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_that_are_there(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def commands(page: Path) -> Iterator[list[str]]:
    """The words behind `llavit` in each command of a page, however it is started."""
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if not re.search(r"\bllavit\b", line):
                continue
            words = shlex.split(line, comments=True)
            for start in ("llavit", "llavit.cli"):
                for at, word in enumerate(words):
                    if word.rpartition("/")[2] == start and (start == "llavit.cli" or at == 0):
                        yield words[at + 1 :]


COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


def test_commands_are_found():
    assert len({name_of(page) for page, _ in COMMANDS}) > 10 and len(COMMANDS) > 60


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{name_of(page)}: {' '.join(words)}" for page, words in COMMANDS]
)
def test_a_command_has_the_arguments_and_options_that_it_uses(page, words):
    command, rest = get_command(app), [word for word in words if word != "..."]
    while hasattr(command, "commands"):
        assert rest and rest[0] in command.commands, f"llavit has no {' '.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    given = command.make_context(command.name, list(rest)).params  # raises what the command line would
    if command.name in ("train", "estimate"):
        recipes = given["recipe"] if isinstance(given["recipe"], (list, tuple)) else [given["recipe"]]
        shipped = {recipe.name for recipe in shipped_recipes()}
        for recipe in recipes:
            if recipe in shipped:
                load_recipe(recipe, given["set_"] or ())
            else:
                assert not recipe.startswith("llava15"), f"llavit has no recipe {recipe}"


def test_each_result_file_is_linked_or_named_by_a_page():
    """Files of cells, many and alike, by the folder `cells` that they are in."""
    words, linked = "", set()
    for page in PAGES:
        words += page.read_text("utf-8")
        linked |= {(page.parent / link.partition("#")[0]).resolve() for link in links(page)}
    folders = ("docs", "results", "benchmarks/results")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*")]
    results = [file for file in files if file.suffix in (".json", ".png", ".html", ".md", ".yaml")]
    assert len(results) > 50
    for file in results:
        named = file.parent if file.parent.name == "cells" else file
        assert file in linked or name_of(named) in words, name_of(file)
