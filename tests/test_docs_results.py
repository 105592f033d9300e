"""docs/results.md: its figures are those of the committed results, and it names all that was run."""

import json
import re
from pathlib import Path

import pytest

from llavit.compare.paired import difference

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/results.md").read_text(encoding="utf-8")
FOLDERS = ["results", "results/repeated"]


def summary(folder):
    return json.loads((ROOT / folder / "summary.json").read_text(encoding="utf-8"))


def with_interval(one):
    return f"{100 * one['gain']:+.1f} [{100 * one['ci95'][0]:+.1f}, {100 * one['ci95'][1]:+.1f}]".replace(
        "-", "−"
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_comparison_is_in_the_table_with_its_interval(folder):
    found = summary(folder)["comparisons"]
    assert found
    for one in found:
        parts = [one, *(one["per_family"][family] for family in ("general", "vision_centric", "ocr_chart"))]
        row = f"| {one['variant']} | {one['baseline']} | {len(one['seeds'])} | {100 * one['baseline_mean']:.1f} | "
        row += f"{100 * one['mean']:.1f} | " + " | ".join(map(with_interval, parts)) + " |"
        assert row in TEXT


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_summary_has_what_each_comparison_needs(folder):
    keys = {"llm", "variant", "baseline", "seeds", "mean", "baseline_mean", "gain", "ci95", "per_family"}
    for one in summary(folder)["comparisons"]:
        assert keys <= set(one)
    assert summary(folder)["not_run"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_was_tried_on_val_is_said(folder):
    for one in summary(folder)["val_only"]:
        assert re.search(rf"\| {re.escape(one['cell'])} \| {100 * one['val']:.1f} \|", TEXT)


def test_each_cell_names_the_revision_and_machine_that_made_it():
    cells = [path for folder in FOLDERS for path in (ROOT / folder / "cells").glob("*.json")]
    assert cells
    for path in cells:
        environment = json.loads(path.read_text(encoding="utf-8"))["environment"]
        assert re.match(r"[0-9a-f]{7}", environment["git revision"]) and environment["torch"]


def losses(folder, variant):
    path = ROOT / folder / f"cells/small.full.{variant}.0.json"
    return json.loads(path.read_text(encoding="utf-8"))["losses"]["instruct"]


@pytest.mark.parametrize(
    ("folder", "steps", "said"),
    [
        (
            "results",
            slice(-100, None),
            "({} against {} over the last 100 steps, on pictures not seen before)",
        ),
        (
            "results/repeated",
            slice(260, 312),
            "({} against {} in steps 260 to 312, on pictures not seen before)",
        ),
        ("results/repeated", slice(-100, None), "({} against {} over the last 100 steps)"),
    ],
)
def test_losses_are_those_of_the_cells(folder, steps, said):
    means = [sum(found) / len(found) for found in (losses(folder, v)[steps] for v in ("llavit", "llava"))]
    assert said.format(*(f"{mean:.2f}" for mean in means)) in " ".join(TEXT.split())


def test_the_losses_of_each_half_are_those_of_the_cells():
    means = [sum(losses("results", v)[-100:]) / 100 for v in ("local-global", "visual-qkv+bidirectional")]
    said = "`local-global` ends at {:.2f} over the last 100 steps, and `visual-qkv+bidirectional` at {:.2f}"
    assert said.format(*means) in " ".join(TEXT.split())


def cells(name):
    """All seeds of a variant, in their order."""
    paths = sorted((ROOT / "results/cells").glob(f"{name}.[0-9]*.json"))
    assert paths
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def mean(values):
    return sum(values) / len(values)


def test_what_is_said_of_smollm2_is_what_its_cells_have():
    llava, llavit = (cells(f"smollm2.short.{variant}") for variant in ("llava", "llavit"))
    assert len(llava) == len(llavit)
    text = " ".join(TEXT.split())
    ends = {
        stage: [
            f"{mean([mean(one['losses'][stage][-20:]) for one in found]):.2f}" for found in (llavit, llava)
        ]
        for stage in ("pretrain", "instruct")
    }
    said = "loss is {} (mean of the last 20 steps, on pictures not seen before) and LLaVA's {};"
    assert said.format(*ends["pretrain"]) in text
    assert "at the end of the second {} and {}.".format(*ends["instruct"]) in text
    sizes = [
        100 * mean([one["test"]["tasks"]["size@test"]["score"] for one in found]) for found in (llava, llavit)
    ]
    assert "learned sizes ({:.1f} % against {:.1f} %)".format(*sizes) in text
    trained = [sum(found[0]["parameters"]["pretrain"]["trained"].values()) / 1e6 for found in (llavit, llava)]
    assert "it trains {:.1f} M numbers and LLaVA {:.1f} M".format(*trained) in text


GEMMA, SMALL = ("gemma", "llava"), ("smollm2", "llava")


def of_smollm2(size, variant="llavit"):
    (one,) = [
        one
        for one in summary("results")["comparisons"]
        if (one["llm"], one["size"], one["variant"]) == ("smollm2", size, variant)
        and (one["baseline"], one["baseline_llm"]) == ("llava", "smollm2")
    ]
    return one


def comparison(llm, variant, baseline_llm=None):
    """One with full training against LLaVA, on the same LLM if no other is named."""
    (one,) = [
        one
        for one in summary("results")["comparisons"]
        if (one["llm"], one["size"], one["variant"], one["baseline"]) == (llm, "full", variant, "llava")
        and one["baseline_llm"] == (baseline_llm or llm)
    ]
    return one


def test_the_readme_has_the_gains_on_each_llm_and_of_each_change():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for name, llm in (
        ("SmolLM2-135M", "smollm2"),
        ("Gemma 3 270M", "gemma"),
        ("a decoder of 4.9 M from scratch", "small"),
    ):
        one = comparison(llm, "llavit")
        scores = f"{100 * one['baseline_mean']:.1f} | {100 * one['mean']:.1f}"
        assert f"| {name} | {len(one['seeds'])} | {scores} | {with_interval(one)} |" in readme
    one = comparison("smollm2", "llavit")
    means = [100 * one["mean"], 100 * one["baseline_mean"]]
    assert "scores {:.1f} as a LLaViT and {:.1f} as a LLaVA, over three seeds".format(*means) in readme
    assert len(one["seeds"]) == 3
    gains = [
        f"{100 * comparison('smollm2', v)['gain']:+.1f}"
        for v in ("visual-qkv", "local-global", "bidirectional", "llava-wide-projector")
    ]
    said = "visual QKV alone bring {} points, tower layers alone {}, the mask alone {}; a LLaVA with as many parameters"
    assert (said + " more in its projector {}").format(*gains) in readme


def test_the_changelog_has_the_gain_on_each_llm():
    changelog = " ".join((ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split())
    for llm in ("smollm2", "gemma", "small"):
        assert with_interval(comparison(llm, "llavit")) in changelog, llm


def test_together_the_changes_bring_more_than_the_sum():
    tasks = {
        v: cells(f"smollm2.full.{v}")[0]["test"]["tasks"]
        for v in ("llava", "llavit", "visual-qkv", "bidirectional", "local-global")
    }
    families = {name: task["family"] for name, task in tasks["llava"].items()}

    def points(name, *variants):
        return [sum(each) for each in zip(*(tasks[v][name]["points"] for v in variants), strict=True)]

    together = {name: points(name, "llavit", "llava", "llava") for name in families}
    each = {name: points(name, "visual-qkv", "bidirectional", "local-global") for name in families}
    found = difference([together], [each], families)
    assert found.low > 0
    assert f"they bring {said_of(found)} points more than the sum" in " ".join(TEXT.split())


def test_other_rates_of_llava_are_said_to_change_nothing_beyond_chance():
    rates = ("llava-llm-fast", "llava-llm-faster", "llava-projector-fast")
    found = {v: cells(f"smollm2.full.{v}")[0] for v in (*rates, "llava")}
    assert all(c["ci95"][0] < 0 < c["ci95"][1] for c in (comparison("smollm2", v) for v in rates))
    val = {v: one["curve"][-1]["score"] for v, one in found.items()}
    assert "On val they end at {:.1f}, {:.1f} and {:.1f}, as it is at {:.1f};".format(
        *(100 * val[v] for v in found)
    ) in " ".join(TEXT.split())
    best = max(val, key=val.__getitem__)
    over = said_of(by_kind(cells("smollm2.full.llavit")[0], found[best])[0])
    assert f"beats the best on val by {over}" in " ".join(TEXT.split())


def test_what_is_said_of_gemma_is_what_its_cells_have():
    with_gemma, with_smollm2 = (cells(f"{llm}.full.llavit")[0] for llm in ("gemma", "smollm2"))
    together, kinds = by_kind(with_gemma, with_smollm2)
    assert together.low < 0 < together.high and kinds["chart"].low > 0
    charts = (100 * with_gemma["test"]["tasks"]["chart@test"]["score"], 100 * kinds["chart"].mean)
    assert "in charts ({:.1f}) it is {:.1f} points ahead".format(*charts) in " ".join(TEXT.split())
    _, over_llava = by_kind(with_gemma, cells("gemma.full.llava")[0])
    assert {kind for kind, one in over_llava.items() if one.low <= 0} == {"size"}
    assert f"beats LLaVA** by {with_interval(comparison('gemma', 'llavit'))} points" in TEXT


def test_what_is_said_of_the_larger_llava_is_what_its_cell_has():
    (gemma,), llava, llavit = (cells(f"{name}.full.{v}") for name, v in (GEMMA, SMALL, ("smollm2", "llavit")))
    text = " ".join(TEXT.split())
    sizes = [one["parameters"]["instruct"]["total"] / 1e6 for one in (llavit[0], gemma)]
    assert (
        "({:.1f} M parameters, tower included) against LLaVA on Gemma 3 270M ({:.1f} M)".format(*sizes)
        in text
    )
    ends = [
        mean(one["losses"][stage][-20:]) for stage in ("pretrain", "instruct") for one in (gemma, llava[0])
    ]
    said = "{:.2f} at the end of the first stage, against {:.2f}, and {:.2f} against {:.2f} at that of the second"
    assert said.format(*ends) in text
    assert f"behind LLaVA on SmolLM2 ({100 * llava[0]['test']['score']:.1f})" in text


@pytest.mark.parametrize("size", ["short", "full"])
def test_each_seed_of_smollm2_has_its_row_and_stands_in_the_readme(size):
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    found = of_smollm2(size)["per_seed"]
    assert found
    for one in found:
        ours, theirs = (f"{100 * one[name]:.1f}" for name in ("mean", "baseline_mean"))
        assert f"| {one['seed']} | {theirs} | {ours} | {with_interval(one)} |" in TEXT
        assert re.search(
            rf"{ours} against {theirs}(?: of 100)?, gain {re.escape(with_interval(one))}",
            readme.replace("-", "−"),
        )


def by_kind(ours, theirs):
    """The gain of one cell over another: all, and by kind of question."""
    ours, theirs = (one["test"]["tasks"] for one in (ours, theirs))
    families = {name: task["family"] for name, task in ours.items()}
    points = [{name: task["points"] for name, task in tasks.items()} for tasks in (ours, theirs)]
    found = {
        name.split("@")[0]: difference([{name: points[0][name]}], [{name: points[1][name]}], {name: family})
        for name, family in families.items()
    }
    return difference([points[0]], [points[1]], families), found


def said_of(one):
    return f"{100 * one.mean:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]".replace("-", "−")


FULL = (
    "llava",
    "bidirectional",
    "visual-qkv",
    "local-global",
    "llava-wide-projector",
    "llava-text-qkv",
    "llavit",
)


def test_each_kind_of_smollm2_at_full_training_has_its_row():
    first = {variant: cells(f"smollm2.full.{variant}")[0] for variant in FULL}
    assert {one["cell"]["seed"] for one in first.values()} == {0}
    _, gains = by_kind(first["llavit"], first["llava"])
    assert len(gains) == 7
    for kind, gain in gains.items():
        scores = [f"{100 * first[variant]['test']['tasks'][f'{kind}@test']['score']:.1f}" for variant in FULL]
        assert f"| {kind} | {' | '.join(scores)} | {said_of(gain)} |" in TEXT


def test_llavit_is_ahead_in_each_seed_at_full_training_in_what_is_named():
    beyond = []
    for llava, llavit in zip(*(cells(f"smollm2.full.{v}") for v in ("llava", "llavit")), strict=True):
        _, found = by_kind(llavit, llava)
        assert all(
            ours["score"] > theirs["score"]
            for ours, theirs in zip(llavit["curve"], llava["curve"], strict=True)
        )
        assert all(one.high > 0 for one in found.values())
        beyond.append({kind for kind, one in found.items() if one.low > 0})
    assert beyond[1] == beyond[2] == {"name", "colour", "place", "word", "chart"} == beyond[0] - {"count"}
    assert "count" in beyond[0]
    assert f"by {with_interval(of_smollm2('full'))} points over three seeds" in " ".join(TEXT.split())


def test_what_is_said_of_smollm2_at_full_training_is_what_its_cells_have():
    first = {variant: cells(f"smollm2.full.{variant}")[0] for variant in FULL}
    text = " ".join(TEXT.split())
    for other in ("visual-qkv", "bidirectional", "local-global", "llava-text-qkv"):
        assert re.search(
            rf"`{other}` by {re.escape(said_of(by_kind(first['llavit'], first[other])[0]))}", text
        )
    of_each = {
        v: with_interval(of_smollm2("full", v)) for v in ("visual-qkv", "local-global", "bidirectional")
    }
    assert f"Visual QKV are worth {of_each['visual-qkv']} points" in text
    assert f"the tower layers {of_each['local-global']}" in text
    assert f"the mask {of_each['bidirectional']}, which is no difference" in text
    assert f"all three {said_of(by_kind(first['llavit'], first['llava'])[0])}." in text
    sizes = [by_kind(first[v], first["llava"])[1]["size"].mean for v in ("visual-qkv", "local-global")]
    assert "({:.1f} and {:.1f} points)".format(*(100 * size for size in sizes)).replace("-", "−") in text
    wide = first["llava-wide-projector"]
    assert f"beats it by {said_of(by_kind(first['llavit'], wide)[0])}" in text
    assert f"({said_of(by_kind(wide, first['visual-qkv'])[0])} ahead of it)" in text
    assert (
        f"gains {100 * of_smollm2('full', 'llava-wide-projector')['gain']:.1f} points, mostly in names"
        in text
    )
    over = said_of(by_kind(first["visual-qkv"], first["llava-text-qkv"])[0])
    assert f"`visual-qkv` is only {over} ahead of it" in text
    assert f"gains {100 * of_smollm2('full', 'llava-text-qkv')['gain']:.1f} points itself" in text
    val = [f"{100 * first[v]['curve'][at]['score']:.1f}" for v in ("llavit", "llava") for at in (2, 5)]
    assert (
        "on val {} at the end of the first stage and {} at that of the second, LLaVA {} and {}".format(*val)
        in text
    )
    ends = [
        f"{mean(first[v]['losses']['instruct'][-20:]):.2f}"
        for v in (
            "llavit",
            "local-global",
            "llava-wide-projector",
            "visual-qkv",
            "llava-text-qkv",
            "bidirectional",
            "llava",
        )
    ]
    said = "The training loss ends at {}, that of `local-global` at {}, `llava-wide-projector` at {}, "
    assert (
        said + "`visual-qkv` at {}, `llava-text-qkv` at {}, `bidirectional` at {} and LLaVA at {}"
    ).format(*ends) in text


def test_the_kinds_in_which_smollm2_gains_are_those_beyond_the_intervals_of_each_seed():
    beyond, behind = [], set()
    for llava, llavit in zip(*(cells(f"smollm2.short.{v}") for v in ("llava", "llavit")), strict=True):
        _, found = by_kind(llavit, llava)
        beyond.append({kind for kind, one in found.items() if one.low > 0})
        behind |= {kind for kind, one in found.items() if one.high < 0}
    first, second = beyond
    assert first == {"colour", "place", "size", "word"} and second == first | {"count"} and not behind
    gains = {name.split("@")[0]: 100 * one["gain"] for name, one in of_smollm2("short")["per_task"].items()}
    said = "in colours ({:+.1f} points), places ({:+.1f}), sizes ({:+.1f}) and words ({:+.1f}), beyond the questions'"
    assert said.format(*(gains[kind] for kind in ("colour", "place", "size", "word"))) in " ".join(
        TEXT.split()
    )


def test_parameters_and_minutes_are_those_of_the_cells():
    named = {
        "SmolLM2-135M, `full`": "smollm2.full",
        "SmolLM2-135M, `short`": "smollm2.short",
        "small decoder": "small.full",
    }
    for name, llm in named.items():
        found = [cells(f"{llm}.{variant}") for variant in ("llava", "llavit")]
        sizes = [f"{seeds[0]['parameters']['instruct']['total'] / 1e6:.1f} M" for seeds in found]
        minutes = [f"{mean([one['seconds']['training'] / 60 for one in seeds]):.1f} min" for seeds in found]
        assert f"| {name} | {' | '.join(sizes + minutes)} |" in TEXT


def test_what_was_learned_by_kind_is_in_the_table():
    models = json.loads((ROOT / "results/learned-by-kind.json").read_text(encoding="utf-8"))["models"]
    llava, llavit = (models[f"small.full.{variant}.0"] for variant in ("llava", "llavit"))
    rows = re.findall(r"^\| ([\w.]+) \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 7
    for kind, *figures in rows:
        shares = [f"{100 * model[kind]['right']:.0f}" for model in (llava, llavit)]
        assert figures == [*shares, *(f"{model[kind]['loss']:.2f}" for model in (llava, llavit))]


def test_files_that_it_links_are_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (ROOT / "docs" / target).exists(), target


def test_each_seed_of_the_small_decoder_has_its_row_and_stands_in_the_readme():
    readme, text = (
        " ".join(page.split()) for page in ((ROOT / "README.md").read_text(encoding="utf-8"), TEXT)
    )
    llava, llavit = (cells(f"small.full.{variant}") for variant in ("llava", "llavit"))
    losses = [f"{mean(one['losses']['instruct'][-100:]):.2f}" for one in (llavit[1], llava[1])]
    assert "nor does it in the second seed ({} against {})".format(*losses) in text
    found = comparison("small", "llavit")["per_seed"]
    assert [one["seed"] for one in found] == [0, 1] and len(llava) == len(llavit) == 2
    for one, ours, theirs in zip(found, llavit, llava, strict=True):
        scores = [f"{100 * one[name]:.1f}" for name in ("baseline_mean", "mean")]
        _, kinds = by_kind(ours, theirs)
        row = [str(one["seed"]), *scores, with_interval(one), said_of(kinds["name"])]
        assert f"| {' | '.join(row)} |" in TEXT and kinds["name"].high < 0
        assert f"{scores[1]} against {scores[0]}, gain {with_interval(one)}" in readme
    apart = {kind for kind, one in kinds.items() if not one.low <= 0 <= one.high}
    assert apart == {"name", "place"} and f"in the second seed ({said_of(kinds['place'])})" in text
