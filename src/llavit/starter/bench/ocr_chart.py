"""Tasks of the family of text and charts."""

from __future__ import annotations

from llavit.starter.bench.ocr_charts import read_chart
from llavit.starter.bench.ocr_forms import read_document
from llavit.starter.bench.ocr_signs import read_sign
from llavit.starter.bench.ocr_words import read_text
from llavit.starter.bench.task import Task

OCR_CHART: tuple[Task, ...] = (
    Task(
        "mini-ocrbench",
        "ocr_chart",
        "exact",
        read_text,
        "A word, a number or a few letters in a font, and a word, that training never shows: read it.",
    ),
    Task(
        "mini-textvqa",
        "ocr_chart",
        "exact",
        read_sign,
        "Three signs beside things: what does the red one, the one next to the dog, or the top one say?",
        chance=0.02,
    ),
    Task(
        "mini-chartqa",
        "ocr_chart",
        "relaxed",
        read_chart,
        "Bars, lines and pies of numbers out of tables that training never shows: a value, the highest or lowest, "
        "a difference, which of two is larger.",
        chance=0.15,
    ),
    Task(
        "mini-docvqa",
        "ocr_chart",
        "anls",
        read_document,
        "Forms of three or four lines and receipts, with names and cities that training never shows.",
        chance=0.05,
    ),
)
