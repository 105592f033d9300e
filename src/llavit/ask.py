"""Asking a model: a conversation that remembers, and answers that come piece by piece."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from llavit.loading import load_model
from llavit.model.images import ImageLike, load_image
from llavit.model.processor import LlavitProcessor
from llavit.progress import quiet_transformers

HELP = "/image PATH shows an image with your next question, /reset starts over, /quit leaves"


class Chat:
    """A conversation with a model.

    Args:
        model: in evaluation mode, on its device.
        processor: that of the model.
        max_new_tokens: greatest length of an answer.

    Attributes:
        messages: what was said so far; images are kept as pictures.

    Example:
        chat = Chat.load("runs/starter/instruct")
        print("".join(chat.ask("What is this?", ["cat.jpg"])))
        for piece in chat.ask("And what colour is it?"):
            print(piece, end="", flush=True)
    """

    def __init__(self, model: Any, processor: LlavitProcessor, *, max_new_tokens: int = 256):
        self.model = model
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.messages: list[dict[str, Any]] = []

    @classmethod
    def load(cls, source: str | Path, *, max_new_tokens: int = 256, progress: bool = False) -> Chat:
        """Load a model from a folder or the hub, onto the GPU if there is one; a LLaVA answers as LLaVA.

        Args:
            source: a folder or a hub id.
            max_new_tokens: greatest length of an answer.
            progress: say on stderr what is happening, if that is a terminal.

        Raises:
            FileNotFoundError: neither a folder nor a model on the hub.
        """
        if not Path(source).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source)):
            raise FileNotFoundError(f"no such model folder: {source}")
        try:
            with quiet_transformers():
                model, processor = load_model(source, progress=progress)
        except OSError as error:
            if Path(source).is_dir():
                raise
            raise FileNotFoundError(
                f"{source} is neither a folder nor a model that the hub gives: {error}"
            ) from error
        return cls(model, processor, max_new_tokens=max_new_tokens)

    def ask(self, text: str, images: Sequence[ImageLike] = ()) -> Iterator[str]:
        """Ask the next question; the answer comes as it is generated, greedily.

        Question and answer join the conversation when the answer ends, or as far as it was read.

        Args:
            text: the question.
            images: shown with it, before the text.

        Raises:
            ValueError: an image cannot be read; the conversation stays as it was.
        """
        pictures = [{"type": "image", "image": load_image(image, "question")} for image in images]
        question = {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}
        encoded = self.processor.encode(
            [*self.messages, question], add_generation_prompt=True, name="question"
        )
        return self._answer(question, encoded)

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages.clear()

    def _answer(self, question: dict[str, Any], encoded: dict[str, torch.Tensor]) -> Iterator[str]:
        device = self.model.device
        inputs = {"input_ids": encoded["input_ids"][None].to(device)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "pixel_values" in encoded:
            inputs["pixel_values"] = encoded["pixel_values"].to(device, self.model.dtype)
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = _Stop()
        errors: list[BaseException] = []

        def generate() -> None:
            try:
                self.model.generate(
                    **inputs,
                    streamer=streamer,
                    do_sample=False,
                    max_new_tokens=self.max_new_tokens,
                    stopping_criteria=StoppingCriteriaList([stop]),
                )
            except BaseException as error:  # reaches the caller, not the thread's end
                errors.append(error)
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        said = ""
        try:
            for piece in streamer:
                said += piece
                if piece:
                    yield piece
        finally:
            stop.wanted = True
            thread.join()
            if not errors:
                answer = {"role": "assistant", "content": [{"type": "text", "text": said}]}
                self.messages += [question, answer]
        if errors:
            raise errors[0]


class _Stop(StoppingCriteria):
    """Ends generation when nobody reads it any more."""

    wanted = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.wanted, dtype=torch.bool, device=input_ids.device)


def converse(
    chat: Chat, lines: Iterable[str], write: Callable[[str], None], images: Sequence[ImageLike] = ()
) -> None:
    """Hold a conversation: each line is a question or a command, see `HELP`.

    A question that fails (an image that cannot be read) is answered with the reason, and the conversation goes on;
    Ctrl-C ends an answer, not the conversation.

    Args:
        chat: with whom.
        lines: what the user types.
        write: takes pieces of text, line breaks included.
        images: shown with the first question.

    Example:
        converse(chat, ["/image cat.jpg", "What is this?", "/quit"], sys.stdout.write)
    """
    waiting = list(images)
    for line in lines:
        command, _, rest = line.strip().partition(" ")
        if command in ("/quit", "/exit"):
            return
        if command == "/reset":
            chat.reset()
            waiting.clear()
            write("starting over\n")
        elif command == "/image":
            try:
                waiting.append(load_image(rest.strip().strip("'\""), "/image"))
                write("the image goes with your next question\n")
            except ValueError as error:
                write(f"{error}\n")
        elif command.startswith("/"):
            write(f"{HELP}\n")
        elif command:
            answer = None
            try:
                answer = chat.ask(line.strip(), waiting)
                waiting.clear()
                for piece in answer:
                    write(piece)
            except ValueError as error:
                write(f"{error}")
            except KeyboardInterrupt:
                answer.close()  # type: ignore[union-attr]
            write("\n")
