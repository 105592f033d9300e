"""docs/inspect.md: every figure of its tables and sentences is that of a file in docs/inspect."""

import json
import re

import pytest

from llavit.inspect.naming import percent
from tests.inspect.docs_page import DOCS, PAGE, SECTIONS


def facts(name: str) -> dict:
    return json.loads((DOCS / f"inspect/{name}.json").read_text(encoding="utf-8"))


def said(name: str) -> str:
    """A section in one line."""
    return " ".join(SECTIONS[name].split())


def points(value: dict[str, float]) -> str:
    """As the page writes accuracy and its interval."""
    return f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]".replace(
        "-0.0", "0.0"
    )


def test_pictures_and_files_are_there():
    files = re.findall(r"\]\((inspect/[^)]+)\)", PAGE)
    assert len(files) > 10 and all((DOCS / file).is_file() for file in files)


def table_rows(section: str, head: str) -> dict[str, list[str]]:
    """The rows of the table that begins with a head: cells by the first one."""
    lines = SECTIONS[section].split(head, 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


# Vocabulary lens


def test_the_shares_are_those_of_the_result_files():
    rows = {}
    for model in ("llava", "llavit"):
        found = facts(f"naming-{model}")
        rows[model] = {row["view"]: row for row in found["by_view"]["k=5"]}
        assert f"--limit {found['settings']['pictures given']} " in said("Vocabulary lens")
        assert f"{len(found['pictures'])} pictures have an object" in said("Vocabulary lens")
    assert table_rows("Vocabulary lens", "| view | LLaVA | chance | LLaViT | chance |") == {
        view: [percent(rows[model][view][key]) for model in rows for key in ("patch", "patch_chance")]
        for view in rows["llava"]
    }


def test_what_the_page_says_of_the_shares_is_so():
    above = {
        model: {row["view"]: row["patch_above_chance"] for row in facts(f"naming-{model}")["by_view"]["k=5"]}
        for model in ("llava", "llavit")
    }
    assert not [view for gains in above.values() for view, gain in gains.items() if gain["low"] > 0]
    gain = above["llavit"]["layer 29"]
    assert f"above chance by {points({**gain, 'value': gain['score']})} points" in said("Vocabulary lens")
    named = {
        model: {row["view"]: row["patch"]["score"] for row in facts(f"naming-{model}")["by_view"]["k=5"]}
        for model in ("llava", "llavit")
    }
    last = {model: shares.pop("layer 29") for model, shares in named.items()}
    assert not any(share for shares in named.values() for share in shares.values())
    assert last["llavit"] > 0.03 and last["llava"] < 0.001


# Knock-out


def cell(found: dict, name: str) -> str:
    return "not applicable" if name in found["not_applicable"] else points(found["losses"][name]["mean"])


def test_losses_of_all_layers_are_those_of_the_result_files():
    llava, llavit = (facts(f"knockout-{model}") for model in ("llava", "llavit"))
    assert table_rows("Knock-out", "| knocked out | LLaVA | LLaViT |") == {
        name: [cell(llava, name), cell(llavit, name)] for name in llavit["names"]
    }
    means = [f"{100 * found['scores']['mean']['value']:.1f}" for found in (llava, llavit)]
    assert f"LLaVA {means[0]}, LLaViT {means[1]} points" in said("Knock-out")
    assert "20 questions of each of its seven kinds" in said("Knock-out")
    assert llava["items"] == llavit["items"] == [20] * 7 + [140]


def test_what_the_page_says_of_the_losses_is_so():
    llava, llavit = (facts(f"knockout-{model}")["losses"] for model in ("llava", "llavit"))
    assert llavit["visual to visual"]["mean"]["low"] > 0 >= llava["visual to visual"]["mean"]["low"]
    later = llavit["visual to later visual"]
    assert [kind for kind, loss in later.items() if loss["low"] > 0] == ["place"]
    assert f"only place loses ({points(later['place'])}," in said("Knock-out")


def test_losses_by_ranges_of_layers_are_those_of_the_result_file():
    found = facts("knockout-layers-llavit")
    rows = table_rows("Knock-out", "| knocked out | layers 0-9 | 10-19 | 20-29 |")
    assert rows == {
        name: [cell(found, f"{name}, layers {layers}") for layers in ("0-9", "10-19", "20-29")]
        for name in ("visual to visual", "visual to later visual", "text to visual")
    }
    means = {name: [float(each.split()[0]) for each in cells] for name, cells in rows.items()}
    assert max(means["text to visual"]) == means["text to visual"][2]  # late
    assert max(means["visual to visual"]) == means["visual to visual"][1]  # in the middle


def test_losses_on_the_benchmark_are_those_of_the_result_files():
    llavit, llava = (facts(f"knockout-benchmark-{model}") for model in ("llavit", "llava"))
    assert llavit["items"] == llava["items"] and llavit["items"][-1] == 98
    assert "98 questions in four families" in said("Knock-out")
    scores = [f"{100 * found['scores']['mean']['value']:.1f}" for found in (llavit, llava)]
    blind = [points(found["losses"]["no image at all"]["mean"]) for found in (llavit, llava)]
    assert f"({scores[0]} and {scores[1]} %): without the image they lose {blind[0]} and {blind[1]}" in said(
        "Knock-out"
    )
    for found in (llavit, llava):
        between = [name for name in found["losses"] if name.startswith("visual to ")]
        assert between and all(
            found["losses"][name]["mean"]["low"] <= 0 <= found["losses"][name]["mean"]["high"]
            for name in between
        )


def test_losses_on_more_of_the_benchmark_are_those_of_the_result_files():
    section = said("Knock-out").split("### On the benchmark", 1)[1]
    rows = re.findall(r"^\| (LLaVA|LLaViT) \| ([a-z ]+) \| (.+) \|$", SECTIONS["Knock-out"], re.MULTILINE)
    found = {"LLaVA": facts("knockout-starter-llava"), "LLaViT": facts("knockout-starter-llavit")}
    assert [(model, name, cells.split(" | ")) for model, name, cells in rows] == [
        (model, name, [points(loss[family]) for family in one["families"]])
        for model, one in found.items()
        for name, loss in one["losses"].items()
    ]
    scores = [f"{name} {100 * one['scores']['mean']['value']:.1f}" for name, one in found.items()]
    assert ", ".join(scores) in section
    for one in found.values():
        assert one["families"] == ["general", "knowledge", "ocr_chart", "vision_centric", "mean"]
        assert one["items"] == [400, 400, 400, 400, 1600] and one["settings"]["mode"] == "likelihood"
        assert f"--limit {one['settings']['limit']} " in section

    def beyond(model: str, name: str) -> list[str]:
        return [family for family, loss in found[model]["losses"][name].items() if loss["low"] > 0]

    used = ["general", "ocr_chart"]
    assert beyond("LLaViT", "no image at all") == beyond("LLaViT", "visual to visual") == used
    assert beyond("LLaVA", "no image at all") == ["general"] and beyond("LLaVA", "visual to visual") == []
    assert beyond("LLaViT", "visual to later visual") == []
    losses = {name: one["losses"]["visual to visual"] for name, one in found.items()}
    for words in (
        f"{points(losses['LLaViT']['general'])} points of the general questions",
        f"{points(losses['LLaViT']['ocr_chart'])} of those about text and charts",
        f"The mean over families loses {points(losses['LLaViT']['mean'])}.",
        f"it loses {points(losses['LLaVA']['general'])}.",
    ):
        assert words in section


def of_the_comparison() -> dict[str, dict]:
    return {
        f"{llm} {model}": facts(f"knockout-{llm}-{model}")
        for llm in ("smollm2", "small")
        for model in ("llava", "llavit")
    }


def test_losses_of_the_models_of_the_comparison_are_those_of_the_result_files():
    found = of_the_comparison()
    head = "| knocked out | SmolLM2, LLaVA | SmolLM2, LLaViT | small, LLaVA | small, LLaViT |"
    names = ("visual to visual", "visual to later visual", "no image at all")
    assert table_rows("Knock-out", head) == {
        name: [cell(one, name) for one in found.values()] for name in names
    }
    scores = [f"{100 * one['scores']['mean']['value']:.1f}" for one in found.values()]
    said_of_them = "have {} and {} points on SmolLM2, {} and {} on the decoder".format(*scores)
    assert said_of_them in said("Knock-out")
    assert all(one["items"][-1] == 700 and one["settings"]["limit"] is None for one in found.values())


def test_what_the_page_says_of_the_models_of_the_comparison_is_so():
    found = of_the_comparison()

    def losers(model: str, name: str) -> dict[str, str]:
        losses = found[model]["losses"][name].items()
        return {kind: points(loss) for kind, loss in losses if loss["low"] > 0 and kind != "mean"}

    text = said("Knock-out")
    llava, llavit = (losers(f"smollm2 {model}", "visual to visual") for model in ("llava", "llavit"))
    assert list(llava) == ["size"] and f"{llava['size']} points in sizes" in text
    assert list(llavit) == ["place", "word"]
    assert f"loses {llavit['place']} in places and {llavit['word']} in words" in text
    later = losers("smollm2 llavit", "visual to later visual")
    assert list(later) == ["place"] and f"kind {later['place']} in places" in text
    assert (
        f"is worth {points(found['smollm2 llavit']['losses']['visual to later visual']['mean'])} points"
        in text
    )
    for model in ("small llava", "small llavit"):
        assert not losers(model, "visual to visual")
        assert found[model]["losses"]["visual to visual"]["mean"]["low"] < 0


# The LLM as a vision encoder


@pytest.mark.parametrize("file", ["probe", "probe-comparison"])
def test_figures_of_the_probe_are_those_of_its_file(file):
    text, models = SECTIONS["The LLM as a vision encoder"], facts(file)["models"]
    for result in models:
        (row,) = [line for line in text.splitlines() if f"`{result['model']}`" in line]
        linear = {place: s["linear"]["unseen style"][0] for place, s in result["scores"].items()}
        best = {}
        for part in ("tower", "LLM"):
            best[part] = max((p for p in linear if p.startswith(part)), key=linear.get)
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
        assert cells == [
            f"{100 * linear[best['tower']]:.1f} % ({best['tower']})",
            f"{100 * linear['LLM 0']:.1f} %",
            f"{100 * linear['LLM 30']:.1f} %",
            f"{100 * linear[best['LLM']]:.1f} % ({best['LLM']})",
        ]
        dense = [result["scores"][p]["dense"]["seen style"][0] for p in ("LLM 0", "LLM 30")]
        assert all(f"{100 * score:.1f} %" in text for score in dense)
    counts = models[0]["counts"]
    assert f"{counts['classes']} concepts; {counts['pictures to learn from']} pictures to learn from" in text
    assert f"{counts['pictures asked']['unseen style']} in an unseen style" in text
    assert f"({counts['pictures asked']['seen style']} in seen styles)" in text


def test_what_the_page_says_of_the_probe_is_so():
    llava, llavit = facts("probe")["models"]
    for measure in ("knn", "linear", "dense"):
        for group in ("seen style", "unseen style"):
            low = llavit["scores"]["LLM 30"][measure][group][1]
            high = llava["scores"]["LLM 30"][measure][group][2]
            assert low >= high if (measure, group) == ("linear", "seen style") else low > high
        tower = max(s[measure]["seen style"][0] for p, s in llavit["scores"].items() if p.startswith("tower"))
        for result in (llava, llavit):
            assert all(
                s[measure]["seen style"][0] < tower
                for p, s in result["scores"].items()
                if p.startswith("LLM")
            )
        best = [
            max(
                (s[measure]["unseen style"] for p, s in llavit["scores"].items() if p.startswith(part)),
                key=lambda score: score[0],
            )
            for part in ("tower", "LLM")
        ]
        assert best[0][1] < best[1][2] and best[1][1] < best[0][2]  # intervals overlap


def test_what_the_page_says_of_the_probe_of_the_comparisons_models_is_so():
    llava, llavit = (model["scores"] for model in facts("probe-comparison")["models"])
    text = said("The LLM as a vision encoder")
    last = {
        (measure, group): (llava["LLM 30"][measure][group], llavit["LLM 30"][measure][group])
        for measure in ("knn", "linear", "dense")
        for group in ("seen style", "unseen style")
    }
    for group in ("seen style", "unseen style"):
        theirs, ours = last["dense", group]
        assert f"{100 * ours[0]:.1f} % against {100 * theirs[0]:.1f} % in " in text and ours[1] > theirs[2]
        theirs, ours = last["linear", group]
        assert ours[1] < theirs[2] and theirs[1] < ours[2]
    theirs, ours = last["knn", "seen style"]
    assert f"({100 * ours[0]:.1f} % against {100 * theirs[0]:.1f} %)" in text and ours[2] < theirs[1]
    for scores in (llava, llavit):
        for measure in ("knn", "linear", "dense"):
            seen = {place: each[measure]["seen style"][0] for place, each in scores.items()}
            tower = max(score for place, score in seen.items() if place.startswith("tower"))
            assert all(score < tower for place, score in seen.items() if place.startswith("LLM"))
        for measure, group in (("linear", "seen style"), ("linear", "unseen style"), ("dense", "seen style")):
            assert scores["LLM 30"][measure][group][0] < scores["LLM 0"][measure][group][0]
