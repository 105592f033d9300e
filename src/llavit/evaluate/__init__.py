"""Asking many questions and scoring the answers."""

from llavit.evaluate.answer import answer_items
from llavit.evaluate.items import Item, load_items
from llavit.evaluate.score import TaskScore, accuracy, is_right, majority_answers, normalise, scores_by_task

__all__ = [
    "Item",
    "TaskScore",
    "accuracy",
    "answer_items",
    "is_right",
    "load_items",
    "majority_answers",
    "normalise",
    "scores_by_task",
]
