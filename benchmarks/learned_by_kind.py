"""What models know of pictures by kind of question: results/learned-by-kind.json.

    python benchmarks/learned_by_kind.py LLAVA LLAVIT --data runs/compare/starter/data/instruct.json -o FILE

Each answer of some conversations of the starter's corpus is given the conversation before it, right answers included,
as in training. Its loss is summed over its tokens; it counts as right if each token is the likeliest. The kind is that
of the phrasing (`llavit.starter.phrases`). Of pictures that a model was trained on this says what it has learned so
far; kinds that the test does not ask are seen too.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

import torch

from llavit.data import open_reader
from llavit.evaluate.environment import environment
from llavit.loading import load_model
from llavit.starter.phrases import PHRASES


def kind_of(question: str) -> str:
    """Name the kind of question whose phrasing fits best: with the most letters of its own.

    Example:
        >>> kind_of("What color is the background?"), kind_of("What color is the cat?")
        ('colour.background', 'colour.thing')
    """
    fits = [
        (len(re.sub(r"\{\w+\}", "", phrase)), kind)
        for kind, phrases in PHRASES.items()
        for phrase in phrases
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", ".+", re.escape(phrase)), question)
    ]
    return max(fits)[1]  # that of easy-VQA fits all


@torch.no_grad()
def known(model: Any, processor: Any, conversations: list[Any]) -> dict[str, dict[str, float]]:
    """Return for each kind the number of answers, their mean loss, and the share that is right."""
    found: dict[str, list[tuple[float, bool]]] = {}
    for messages in conversations:
        for turn in range(1, len(messages), 2):
            row = processor.encode(messages[: turn + 1], return_labels=True)
            start = len(processor.encode(messages[:turn], add_generation_prompt=True)["input_ids"])
            logits = model(input_ids=row["input_ids"][None], pixel_values=row["pixel_values"]).logits[0]
            said, answer = logits[start - 1 : -1].float().log_softmax(-1), row["input_ids"][start:]
            loss = -said.gather(1, answer[:, None]).sum().item()
            right = bool((said.argmax(-1) == answer).all())
            found.setdefault(kind_of(_words(messages[turn - 1])), []).append((loss, right))
    return {
        kind: {
            "answers": len(rows),
            "loss": round(sum(loss for loss, _ in rows) / len(rows), 3),
            "right": round(sum(right for _, right in rows) / len(rows), 3),
        }
        for kind, rows in sorted(found.items())
    }


def _words(message: dict[str, Any]) -> str:
    content = message["content"]
    return (content if isinstance(content, str) else content[-1]["text"]).strip()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=200, help="conversations, chosen at random")
    parser.add_argument("--output", "-o", type=Path, required=True)
    options = parser.parse_args()
    reader = open_reader(str(options.data))
    chosen = random.Random(0).sample(range(len(reader)), min(options.limit, len(reader)))
    conversations = [reader.sample(index).messages for index in chosen]
    result: dict[str, Any] = {
        "about": (__doc__ or "").splitlines()[0],
        "data": options.data.name,
        "conversations": len(conversations),
        "environment": environment(),
        "models": {},
    }
    for folder in options.models:
        model, processor = load_model(folder, dtype="float32")
        result["models"][folder.parent.parent.name] = known(model, processor, conversations)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(options.output)


if __name__ == "__main__":
    main()
