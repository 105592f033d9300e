"""Asking many questions and scoring the answers."""

from llavit.evaluate.answer import answer_items
from llavit.evaluate.asking import Answer, Asker
from llavit.evaluate.baselines import BASELINES
from llavit.evaluate.bench import BenchTask, load_bench, load_task, read_tasks
from llavit.evaluate.caption import cider_d, noun_recall
from llavit.evaluate.items import Item, load_items
from llavit.evaluate.judge import Mark, judge, points
from llavit.evaluate.reading import read_letter, read_number, read_yes_no
from llavit.evaluate.result import read_result
from llavit.evaluate.run import evaluate
from llavit.evaluate.score import TaskScore, accuracy, is_right, majority_answers, normalise, scores_by_task
from llavit.evaluate.served import ServedAsker, evaluate_served

__all__ = [
    "BASELINES",
    "Answer",
    "Asker",
    "BenchTask",
    "Item",
    "Mark",
    "ServedAsker",
    "TaskScore",
    "accuracy",
    "answer_items",
    "cider_d",
    "evaluate",
    "evaluate_served",
    "is_right",
    "judge",
    "load_bench",
    "load_items",
    "load_task",
    "majority_answers",
    "normalise",
    "noun_recall",
    "points",
    "read_letter",
    "read_number",
    "read_result",
    "read_tasks",
    "read_yes_no",
    "scores_by_task",
]
