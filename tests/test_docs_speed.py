"""docs/speed.md: its figures are those of benchmarks/results, or it says of them that no file has them."""

import json
import re
from pathlib import Path

from benchmarks.speed import report

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
SECTIONS = {
    part.split("\n", 1)[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE) if part.strip()
}


def test_the_table_is_that_of_the_result_files():
    assert report.between_marks() == report.table() == (report.RESULTS / "latest.md").read_text()


def test_the_table_of_the_other_machine_is_that_of_its_file():
    assert (report.RESULTS / "amx-2-cores/latest.md").read_text(encoding="utf-8") in PAGE
    made = report.read(report.RESULTS / "amx-2-cores")[1]["groups"].values()
    assert all(group["made"]["processor"].startswith("Intel") for group in made)
    assert all(group["made"]["processor"] == "AMD EPYC" for group in report.read()[1]["groups"].values())


def test_the_profile_is_that_of_its_file():
    found = json.loads((report.RESULTS / "profile.json").read_text(encoding="utf-8"))
    step = found["profile"]["documents"]
    parts = {
        "matrix products": step["matrix products"],
        "attention": step["products in attention"] + step["softmax in attention"],
        "fused kernels": step["fused kernels (norms, activations, rotary, casts)"],
        "copies, gathers": step["copies and gathers"],
        "AdamW, clipping": step["AdamW"] + step["clipping"],
        "everything else": step["everything else"],
    }
    section = SECTIONS["Where a training step's time goes"]
    rows = re.findall(r"^\| (.*) \| ([\d.]+) \|$", section, re.MULTILINE)
    assert len(rows) == len(parts)
    for (name, seconds), (part, value) in zip(rows, parts.items(), strict=True):
        assert name.startswith(part) and seconds == f"{value:.2f}"
    median = found["median"]
    assert f"{median['eager']:.1f} and {median['documents']:.1f} s a step" in section
    assert f"{found['tokens']:,}" in section


def test_figures_that_no_file_has_are_marked():
    for name in ("Where a training step's time goes", "Where a token's time goes"):
        assert "are in no result file" in " ".join(SECTIONS[name].split())
