"""Results of analyses: files that can be read back, pages that need nothing else, several models side by side."""

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest

from llavit.inspect.report import Analysis, new_figure, save_all, side_by_side, slider


@dataclass(frozen=True, kw_only=True, eq=False)
class Lengths(Analysis):
    """An analysis as the module's docstring says to write one."""

    NAME, TITLE, ABOUT = "lengths", "Lengths", "How long tokens are."
    visual_n: np.ndarray
    words: list[str]

    def figure(self):
        figure = new_figure(3, 2)
        figure.subplots().plot(self.visual_n)
        return figure


@dataclass(frozen=True, kw_only=True, eq=False)
class Others(Lengths):
    """Another analysis."""


def lengths(model: str = "llavit", kind: type[Lengths] = Lengths) -> Lengths:
    return kind(model=model, settings={"layers": [0, 1]}, visual_n=np.arange(3.0), words=["a", "<b>"])


def external(page: str) -> list[str]:
    """What a page would load from elsewhere."""
    links = re.findall(r"""(?:src|href)=["']([^"']*)""", page) + re.findall(r"url\(([^)]*)", page)
    return [link for link in links if not link.startswith("data:")]


def test_saving_writes_arrays_facts_picture_and_page(tmp_path):
    page = lengths().save(tmp_path / "new" / "folder")
    assert page.name == "lengths.html"
    arrays = np.load(page.with_suffix(".npz"))
    assert arrays.files == ["visual_n"]
    np.testing.assert_array_equal(arrays["visual_n"], [0, 1, 2])
    facts = json.loads(page.with_suffix(".json").read_text())
    assert facts["words"] == ["a", "<b>"] and facts["settings"] == {"layers": [0, 1]}
    assert facts["analysis"] == "lengths" and facts["model"] == "llavit" and "torch" in facts["environment"]
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert lengths().save(tmp_path, "other").name == "other.html"


def test_a_page_needs_no_other_file_and_escapes_names():
    page = lengths(model="<script>x</script>").html()
    assert external(page) == []
    assert "&lt;script&gt;x" in page and "<script>x" not in page
    assert "data:image/png;base64," in page and "How long tokens are." in page
    assert "color-scheme: light dark" in page


def test_several_models_stand_side_by_side(tmp_path):
    page = save_all([lengths("llava"), lengths("llavit")], tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {
        "lengths.html",
        *(f"lengths-{n}.{end}" for n in (1, 2) for end in ("npz", "json", "png")),
    }
    text = page.read_text()
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["llava", "llavit"]
    assert json.loads((tmp_path / "lengths-2.json").read_text())["model"] == "llavit"


def test_what_cannot_stand_side_by_side_is_refused():
    with pytest.raises(ValueError, match="at least one result"):
        side_by_side([])
    with pytest.raises(ValueError, match="of one analysis, got Lengths, Others"):
        side_by_side([lengths(), lengths(kind=Others)])


def test_a_slider_holds_all_frames_without_javascript():
    html = slider([("in <put>", "<b>one</b>"), ("layer 1", "<b>two</b>")], label="layer", start=1)
    assert html.count("<figcaption>") == 2 and "<b>one</b>" in html and "<b>two</b>" in html
    assert "in &lt;put&gt;" in html and 'data-start="1"' in html
    assert "display" not in html and "hidden" not in html  # hiding is the script's work
    with pytest.raises(ValueError, match="start=2, expected 0 to 1"):
        slider([("a", ""), ("b", "")], start=2)
    with pytest.raises(ValueError, match="there are 0 frames"):
        slider([])


def test_an_analysis_without_a_figure_says_so():
    with pytest.raises(NotImplementedError, match=r"Analysis has no figure\(\)"):
        Analysis().body()
