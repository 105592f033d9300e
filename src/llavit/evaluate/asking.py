"""Items to answers: pictures through the tower once, prompts in batches, equal prompts once, failures kept apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llavit.data.features import image_digest
from llavit.evaluate.engine import Engine
from llavit.evaluate.items import Item, Picture
from llavit.evaluate.stretches import Prompt

KEPT_BYTES = 2 << 30
"""Of pictures' features that an `Asker` keeps on the device; a task with more is asked in parts."""

_IMAGES = 32  # that go through the tower together
# What counts as the failure of an item: no memory, no picture, NaN, ...
_FAILS = (RuntimeError, ValueError, OSError, FloatingPointError)


@dataclass(frozen=True)
class Answer:
    """What came of one question.

    Attributes:
        text: what the model wrote, or of given options the likeliest; None if there was an error.
        error: the reason for None.
        likelihoods: mean log-probability per token of each option, where they were asked for.
    """

    text: str | None
    error: str | None = None
    likelihoods: tuple[float, ...] | None = None


class Asker:
    """Asks a model the questions of items, and remembers what the tower saw in each picture.

    Args:
        model: a LLaViT or LLaVA model; the caller puts it into evaluation mode.
        processor: its processor.
        batch_size: questions that run together.
        kept_bytes: most memory for the features of pictures; a picture goes through the tower once as long as all of a
            task's fit.

    Example:
        asker = Asker(model.eval(), processor)
        answers = asker.generate(task.items, ["own"] * len(task.items), max_new_tokens=8)
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 32, kept_bytes: int = KEPT_BYTES):
        self.model, self.processor = model, processor
        width = model.model.multi_modal_projector.linear_1.in_features
        self._most = max(1, kept_bytes // (model.config.image_seq_length * width * model.dtype.itemsize))
        self.engine = Engine(model, processor.tokenizer.pad_token_id, batch_size)
        self._features: dict[str, torch.Tensor] = {}

    def forget_pictures(self) -> None:
        """Let go of the features of all pictures."""
        self._features.clear()

    def generate(
        self,
        items: Sequence[Item],
        pictures: Sequence[Picture],
        max_new_tokens: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Return the greedy answer to each item, up to the end of its first line.

        Args:
            items: the questions.
            pictures: what each is asked with.
            max_new_tokens: greatest length of an answer, in tokens.
            progress: called with the number of items just done.
        """

        def run(prompts: list[Prompt], done: Callable[[int], None]) -> list[Answer]:
            written = self.engine.generate(
                prompts, max_new_tokens=max_new_tokens, stop=self._ends_line, progress=done
            )
            return [Answer(first_line(self._text(ids))) for ids in written]

        return self._ask(items, pictures, run, progress)

    def choose(
        self,
        items: Sequence[Item],
        pictures: Sequence[Picture],
        options: Sequence[Sequence[str]],
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Return the likeliest of given answers to each item, by mean log-probability per token.

        Args:
            items: the questions.
            pictures: what each is asked with.
            options: the answers to choose from, of each item; of equally likely ones the first is chosen.
            progress: called with the number of items just done.
        """
        texts = sorted({text for of_item in options for text in of_item})
        tokens, cut = self._option_tokens(items[0], texts)
        by_item = {item.id: list(of_item) for item, of_item in zip(items, options, strict=True)}

        def run(prompts: list[Prompt], done: Callable[[int], None]) -> list[Answer]:
            for prompt in prompts:
                prompt.ids = prompt.ids[: len(prompt.ids) - cut]
            wanted = [by_item[prompt.name] for prompt in prompts]
            scores = self.engine.likelihoods(
                prompts, [[tokens[text] for text in of_item] for of_item in wanted], progress=done
            )
            return [
                Answer(of_item[row.index(max(row))], likelihoods=tuple(row))
                for of_item, row in zip(wanted, scores, strict=True)
            ]

        return self._ask(items, pictures, run, progress, apart=lambda item: tuple(by_item[item.id]))

    def rendered(self, item: Item, picture: Picture = "own") -> str:
        """Return the prompt of an item as text, one image token for each image."""
        return self.processor.render(item.messages(picture), add_generation_prompt=True)

    def _ask(
        self,
        items: Sequence[Item],
        pictures: Sequence[Picture],
        run: Callable[[list[Prompt], Callable[[int], None]], list[Answer]],
        progress: Callable[[int], None] | None,
        apart: Callable[[Item], Any] = lambda item: None,
    ) -> list[Answer]:
        """Answer items, as many together as the features of their pictures fit into memory."""
        done = progress or (lambda count: None)
        answers: list[Answer] = []
        for part in self._parts(items, pictures):
            answers += self._ask_part(items[part], pictures[part], run, done, apart)
        return answers

    def _parts(self, items: Sequence[Item], pictures: Sequence[Picture]) -> Iterator[slice]:
        """Cut items into stretches that show no more pictures than are kept, and make room for those of each."""
        shown = [_shown(item, picture) for item, picture in zip(items, pictures, strict=True)]
        start, inside = 0, set[str]()
        for number, name in enumerate([*shown, None]):
            last = number == len(shown)
            if last or (name is not None and name not in inside and len(inside) == self._most):
                if len(self._features.keys() | inside) > self._most:
                    self._features = {name: self._features[name] for name in inside & self._features.keys()}
                yield slice(start, number)
                start, inside = number, set()
            if name is not None:
                inside.add(name)

    def _ask_part(
        self,
        items: Sequence[Item],
        pictures: Sequence[Picture],
        run: Callable[[list[Prompt], Callable[[int], None]], list[Answer]],
        done: Callable[[int], None],
        apart: Callable[[Item], Any],
    ) -> list[Answer]:
        """Answer items: equal prompts once, and what fails apart from the rest."""
        self._look(items, pictures)
        answers: dict[int, Answer] = {}
        alike: dict[Any, list[int]] = {}
        prompts: dict[Any, Prompt] = {}
        for number, (item, picture) in enumerate(zip(items, pictures, strict=True)):
            try:
                prompt = self._prompt(item, picture)
            except _FAILS as error:
                answers[number] = Answer(None, f"{type(error).__name__}: {error}")
                continue
            key = (tuple(prompt.keys()), apart(item))
            alike.setdefault(key, []).append(number)
            prompts.setdefault(key, prompt)
        repeated = len(items) - len(prompts)
        given = self._guarded(list(prompts.values()), run, done)
        for numbers, answer in zip(alike.values(), given, strict=True):
            answers.update(dict.fromkeys(numbers, answer))
        if repeated:
            done(repeated)
        return [answers[number] for number in range(len(items))]

    def _guarded(
        self,
        prompts: list[Prompt],
        run: Callable[[list[Prompt], Callable[[int], None]], list[Answer]],
        done: Callable[[int], None],
    ) -> list[Answer]:
        """Run prompts; where that fails, in halves, until what fails is known."""
        if not prompts:
            return []
        counted = 0

        def count(more: int) -> None:
            nonlocal counted
            counted += more
            done(more)

        before = [list(prompt.ids) for prompt in prompts]
        try:
            return run(prompts, count)
        except _FAILS as error:
            why = f"{type(error).__name__}: {error}"
        # Not within `except`: there the error still holds what the failed run had on the device.
        done(-counted)
        for prompt, ids in zip(prompts, before, strict=True):
            prompt.ids = ids
        if len(prompts) == 1:
            done(1)
            return [Answer(None, why)]
        half = len(prompts) // 2
        return self._guarded(prompts[:half], run, done) + self._guarded(prompts[half:], run, done)

    def _prompt(self, item: Item, picture: Picture) -> Prompt:
        names: list[str] = []

        def features(image: Any) -> torch.Tensor:
            names.append(_name(image))
            return self._seen(image)

        encoded = self.processor.encode(
            item.messages(picture), add_generation_prompt=True, image_features=features, name=item.id
        )
        seen = [self._features[name] for name in names]
        return Prompt(
            encoded["input_ids"].tolist(), seen, list(names), self.model.config.image_token_id, item.id
        )

    def _seen(self, image: Any) -> torch.Tensor:
        name = _name(image)
        if name not in self._features:
            self._features[name] = self._encode([image])[0]
        return self._features[name]

    def _look(self, items: Sequence[Item], pictures: Sequence[Picture]) -> None:
        """Send the pictures that are files through the tower in batches; what fails is met again later, alone."""
        shown = (
            _shown(item, picture) for item, picture in zip(items, pictures, strict=True) if picture != "blank"
        )
        new = [path for path in dict.fromkeys(shown) if path is not None and path not in self._features]
        for start in range(0, len(new), _IMAGES):
            batch = new[start : start + _IMAGES]
            try:
                self._features.update(zip(batch, self._encode(batch), strict=True))
            except _FAILS:
                continue

    @torch.inference_mode()
    def _encode(self, images: list[Any]) -> torch.Tensor:
        return self.model.model.encode_images(self.processor.pixel_values(images))

    def _option_tokens(self, item: Item, texts: Sequence[str]) -> tuple[dict[str, list[int]], int]:
        """Tokens of each answer behind a prompt, and how many of the prompt's last tokens they replace.

        Tokenised together with the prompt, as in training: some tokenizers join its end with the answer. All
        prompts end alike (the chat template's), so one stands for all.
        """
        question = item.messages("none")
        prompt = self.processor.encode(question, add_generation_prompt=True)["input_ids"].tolist()
        whole: dict[str, list[int]] = {}
        common = len(prompt)
        for text in texts:
            turn = {"role": "assistant", "content": [{"type": "text", "text": text}]}
            encoded = self.processor.encode([*question, turn], return_labels=True)
            end = int((encoded["labels"] != -100).nonzero()[-1]) + 1
            ids = encoded["input_ids"][:end].tolist()
            while ids and ids[-1] in self.engine.ends:
                ids.pop()
            whole[text] = ids
            shared = next(
                (n for n, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt)
            )
            common = min(common, shared, len(ids) - 1)
        return {text: ids[common:] for text, ids in whole.items()}, len(prompt) - common

    def _text(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True)

    def _ends_line(self, ids: list[int]) -> bool:
        return "\n" in self._text(ids).lstrip()


def _shown(item: Item, picture: Picture) -> str | None:
    """Name the picture that an item is asked with: its file, or of a grey one whose place it takes; None for none."""
    if item.image is None or picture == "none":
        return None
    return f"grey {item.image}" if picture == "blank" else str(item.image if picture == "own" else picture)


def _name(image: Any) -> str:
    return image if isinstance(image, str) else image_digest(image)


def first_line(text: str) -> str:
    """Return the first line that has something in it.

    Example:
        >>> first_line("\\n red. \\nOr blue.")
        'red.'
    """
    return text.strip().split("\n")[0].strip()
