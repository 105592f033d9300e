"""A small benchmark on disk, with real pictures, in the form that the starter writes: every metric, every grouping."""

import json
from pathlib import Path

from PIL import Image, ImageDraw

from llavit.evaluate.bench import bench_fingerprint

COLOURS = ("red", "blue", "green", "orange")


def save_task(folder: Path, name: str, family: str, metric: str, rows: list[dict], **about) -> Path:
    """Write one task; each row's "colour" is drawn (None: a question without a picture)."""
    place = folder / name
    (place / "images").mkdir(parents=True)
    items = []
    for number, row in enumerate(rows):
        colour, picture = row.pop("colour"), row.pop("picture", number)
        path = f"images/{picture:05d}.png" if colour else None
        if colour:
            image = Image.new("RGB", (28, 28), "white")
            ImageDraw.Draw(image).ellipse((4, 4, 14 + picture % 10, 22), colour)
            image.save(place / path)
        items.append(
            {"id": f"{name}-{number}", "image": path, "accepted": [], "options": None, "group": None, **row}
        )
    text = "".join(json.dumps(item) + "\n" for item in items).encode()
    (place / "items.jsonl").write_bytes(text)
    task = {
        "id": f"{name}@small-1",
        "name": name,
        "edition": "small",
        "version": 1,
        "family": family,
        "metric": metric,
        "group": None,
        "chance": 0.25,
        "max_new_tokens": 4,
        "about": f"About {name}.",
        "items": len(items),
        "fingerprint": bench_fingerprint(place, text),
        **about,
    }
    (place / "task.json").write_text(json.dumps(task))
    return place


def save_bench(folder: Path) -> Path:
    """Write six tasks of five to eight items."""
    yes_no = [
        {
            "colour": colour,
            "question": f"Is it {asked}?\nPlease answer yes or no.",
            "answer": answer,
            "group": group,
        }
        for group, pair in (("g0", ("red", "blue")), ("g1", ("green", "orange")), ("g2", ("blue", "green")))
        for colour, asked, answer in ((pair[0], pair[0], "yes"), (pair[1], pair[0], "no"))
    ]
    save_task(folder, "pairs", "vision_centric", "yes_no", yes_no, group="pair")
    turned = []
    for number, colour in enumerate(COLOURS[:3]):
        for turn in range(4):
            options = [*COLOURS[turn:], *COLOURS[:turn]]
            lines = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
            turned.append(
                {
                    "colour": colour,
                    "picture": number,
                    "question": f"Which colour?\n{lines}",
                    "answer": "ABCD"[options.index(colour)],
                    "options": options,
                    "group": f"c{number}",
                    "unseen_concept": number == 2,
                }
            )
    save_task(folder, "turned", "general", "choice", turned, group="circular")
    save_task(
        folder,
        "short",
        "general",
        "exact",
        [
            {
                "colour": c,
                "question": "Which colour?",
                "answer": c,
                "accepted": [f"{c} dot"],
                "unseen_style": c == "red",
            }
            for c in (*COLOURS, *COLOURS)
        ],
    )
    numbers = [{"colour": c, "question": "How many?", "answer": str(20 + n)} for n, c in enumerate(COLOURS)]
    save_task(
        folder,
        "numbers",
        "knowledge",
        "relaxed",
        [*numbers, {"colour": None, "question": "1+1?", "answer": "2"}],
    )
    save_task(
        folder,
        "forms",
        "ocr_chart",
        "anls",
        [{"colour": c, "question": "What is written?", "answer": f"total {c}"} for c in COLOURS],
    )
    save_task(
        folder,
        "captions",
        "anchor",
        "caption",
        [
            {
                "colour": c,
                "question": "Describe it.",
                "answer": f"a {c} dot on white",
                "accepted": ["dot|circle", "white"],
            }
            for c in COLOURS
        ],
        max_new_tokens=12,
    )
    return folder
