"""Asking a model: a conversation that remembers, and answers that come piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

from llavit.model.images import ImageLike, load_image
from llavit.serve import Engine, Stream

HELP = "/image PATH shows an image with your next question, /reset starts over, /quit leaves"


class Chat:
    """A conversation with a model; the next question pays for its own tokens only.

    Args:
        engine: with a model.
        max_new_tokens: greatest length of an answer.

    Attributes:
        messages: what was said so far; images are kept as pictures.

    Example:
        chat = Chat.load("runs/starter/instruct")
        print("".join(chat.ask("What is this?", ["cat.jpg"])))
        for piece in chat.ask("And what colour is it?"):
            print(piece, end="", flush=True)
    """

    def __init__(self, engine: Engine, *, max_new_tokens: int = 256):
        self.engine = engine
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
        # Compiling takes longer than a few answers.
        engine = Engine.load(source, compile="never", max_batch=1, progress=progress)
        return cls(engine, max_new_tokens=max_new_tokens)

    def ask(self, text: str, images: Sequence[ImageLike] = ()) -> Generator[str, None, None]:
        """Ask the next question; the answer comes as it is generated, greedily.

        Question and answer join the conversation when the answer ends, or as far as it was read.

        Args:
            text: the question.
            images: shown with it, before the text.

        Raises:
            ValueError: an image cannot be read, or the conversation has become too long; it stays as it was.
        """
        pictures = [{"type": "image", "image": load_image(image, "question")} for image in images]
        question = {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}
        stream = self.engine.stream([*self.messages, question], max_new_tokens=self.max_new_tokens)
        return self._answer(question, stream)

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages.clear()

    def _answer(self, question: dict[str, Any], stream: Stream) -> Generator[str, None, None]:
        said, failed = "", False
        try:
            with stream:
                for piece in stream:
                    said += piece.text
                    if piece.text:
                        yield piece.text
        except Exception:  # and not that nobody reads on, or Ctrl-C
            failed = True
            raise
        finally:
            if not failed:
                answer = {"role": "assistant", "content": [{"type": "text", "text": said}]}
                self.messages += [question, answer]


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
                if answer is not None:  # else it came before anything was asked
                    answer.close()
            write("\n")
