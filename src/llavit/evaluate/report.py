"""A run's report: one JSON file with every number, one self-contained HTML page to look at."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from llavit.evaluate.items import Item
from llavit.evaluate.score import accuracy, is_right, majority_answers, scores_by_task
from llavit.evaluate.sheet import first_of_each_task


def score_report(
    items: Sequence[Item],
    answers: Sequence[str],
    blind: Sequence[str],
    losses: Mapping[str, Sequence[float]],
    grey: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the numbers of a report: accuracies (0 to 1) overall and per task, beside both baselines.

    Args:
        items: the questions.
        answers: the model's.
        blind: the model's without the pictures.
        losses: training loss of each step, by stage.
        grey: the model's with a grey picture in place of each, a stricter baseline where a model has learned its
            answers' form with pictures only.
    """
    given = {"accuracy": answers, "blind_accuracy": blind, "majority_accuracy": majority_answers(items)}
    if grey is not None:
        given["grey_accuracy"] = grey
    seen = {name: scores_by_task(items, said) for name, said in given.items()}
    return {
        **{name: accuracy(items, said) for name, said in given.items()},
        "items": len(items),
        "per_task": {
            task: {"items": score.items, **{name: by_task[task].accuracy for name, by_task in seen.items()}}
            for task, score in seen["accuracy"].items()
        },
        "per_unseen": {
            name: {"items": len(chosen), "accuracy": accuracy(*zip(*chosen, strict=True))}
            for name in ("concept", "style")
            if (chosen := [pair for pair in zip(items, answers, strict=True) if name in pair[0].unseen])
        },
        "loss": {stage: list(values) for stage, values in losses.items()},
    }


def render_report(
    title: str,
    summary: str,
    report: Mapping[str, Any],
    items: Sequence[Item],
    answers: Sequence[str],
    blind: Sequence[str],
    made: Mapping[str, Any],
    cards_per_task: int = 4,
) -> str:
    """Return the report as one HTML page that needs no other file.

    Args:
        title: heading.
        summary: a sentence or two under it.
        report: of `score_report`.
        items: the questions.
        answers: the model's.
        blind: the model's without the pictures.
        made: how it was made, as a table at the end.
        cards_per_task: the first so many items of each task are shown.
    """
    rows = [
        {
            "task": task,
            "items": row["items"],
            "accuracy": row["accuracy"],
            "blind": row["blind_accuracy"],
            "majority": row["majority_accuracy"],
            "grey": row.get("grey_accuracy"),
        }
        for task, row in report["per_task"].items()
    ]
    total = {
        "task": "all",
        "items": report["items"],
        "accuracy": report["accuracy"],
        "blind": report["blind_accuracy"],
        "majority": report["majority_accuracy"],
        "grey": report.get("grey_accuracy"),
    }
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"]))
    return pages.get_template("report.html.j2").render(
        title=title,
        summary=summary,
        rows=[*rows, total],
        loss_svg=_loss_svg(report["loss"]),
        cards=_cards(items, answers, blind, cards_per_task),
        made=made,
    )


def _cards(
    items: Sequence[Item], answers: Sequence[str], blind: Sequence[str], per_task: int
) -> list[dict[str, Any]]:
    return [
        {
            "data": base64.b64encode(_picture(items[i]).read_bytes()).decode(),
            "kind": "png" if _picture(items[i]).suffix == ".png" else "jpeg",
            "question": items[i].question.split("\n")[0],
            "answer": answers[i],
            "truth": items[i].answer,
            "right": is_right(answers[i], items[i]),
            "blind": blind[i],
            "unseen": " and ".join(sorted(items[i].unseen)),
        }
        for i in first_of_each_task(items, per_task)
    ]


def _picture(item: Item) -> Path:
    assert item.image is not None  # the starter's items have one
    return item.image


def _loss_svg(losses: Mapping[str, Sequence[float]]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(losses), figsize=(4.6 * len(losses), 2.6), squeeze=False)
    for axis, (stage, values) in zip(axes[0], losses.items(), strict=True):
        steps = range(1, len(values) + 1)
        axis.plot(steps, values, color="#3b7dd8", alpha=0.35, linewidth=1)
        axis.plot(steps, _smoothed(values), color="#3b7dd8", linewidth=1.8)
        axis.set(title=stage, xlabel="step", ylabel="loss", ylim=(0, None))
        axis.grid(alpha=0.25)
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg")
    pyplot.close(figure)
    svg = out.getvalue()
    return svg[svg.index("<svg") :]


def _smoothed(values: Sequence[float], keep: float = 0.9) -> list[float]:
    """Return the exponential moving average, without a bias to the first value."""
    smooth, out, weight = 0.0, [], 0.0
    for value in values:
        smooth, weight = keep * smooth + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(smooth / weight)
    return out
