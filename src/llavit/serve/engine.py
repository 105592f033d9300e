"""The engine: load a model once and ask it from any number of threads.

caller's thread                          engine's thread
messages -> tokens, pixels -> queue  ->  prefill, decode step, decode step, ...  ->  pieces of the answer
"""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llavit.compiling import Compile, can_compile
from llavit.loading import load_model
from llavit.model.endings import end_tokens, never_generated
from llavit.model.images import ImageLike
from llavit.progress import quiet_transformers, status
from llavit.serve.answers import Answer, EngineStats
from llavit.serve.image_cache import ImageCache, TokenPath
from llavit.serve.loop import Loop
from llavit.serve.messages import Messages, conversation
from llavit.serve.pictures import Pictures
from llavit.serve.request import Prompt, Request, Stream
from llavit.serve.runner import Runner
from llavit.serve.sampling import Sampling
from llavit.serve.scheduler import Scheduler
from llavit.threads import release_helpers

_PICTURES = 64 << 20
"""Bytes of pixels that are kept: of 48 pictures of 336 x 336."""


class Engine:
    """Answers questions about images, many at once, and pays for an image once.

    Args:
        model: a LLaViT or LLaVA in evaluation mode, on its device. It is the engine's until it is closed; who wants to
            use it in between asks for it with `exclusive`.
        processor: that of the model.
        max_batch: requests that run together; others wait.
        max_length: greatest number of tokens of prompt and answer together; by default the model's own limit, at most
            4096. Keys and values of `max_batch` conversations of this length have room in memory.
        max_queue: requests that may wait; a further one raises `EngineBusy`.
        image_cache_bytes: greatest size of the image cache, on the model's device; 0 turns it off. Beside it the
            pixels of pictures that were shown lately are kept in main memory (64 MiB, and not more than this).
        compile: "auto" compiles the LLM where that works, which takes some minutes when the engine is made, and
            makes answers several times as fast; "always" raises where it does not work; "never" runs the model as it
            is.

    Attributes:
        model: the model.
        processor: its processor.
        pictures: those that were shown lately.
        name: where the model came from.
        max_length: as above.

    Raises:
        ValueError: an option that makes no sense, or a model whose attention takes no masks.
        RuntimeError: compile is "always", and nothing can be compiled here.

    Example:
        engine = Engine.load("runs/starter/instruct")
        print(engine.answer("What is this?", ["cat.jpg"]))
        print(engine.answer("Which colour is it?", ["cat.jpg"]))  # pays for its own tokens only
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_batch: int = 16,
        max_length: int | None = None,
        max_queue: int = 64,
        image_cache_bytes: int = 1 << 30,
        compile: Compile = "never",
    ):
        for name, value, least in (
            ("max_batch", max_batch, 1),
            ("max_queue", max_queue, 1),
            ("image_cache_bytes", image_cache_bytes, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: expected a whole number from {least} up")
        if compile not in ("never", "auto", "always"):
            raise ValueError(f"compile={compile!r}: expected never, auto or always")
        self.model, self.processor = model, processor
        self.name = model.config._name_or_path or model.config.model_type
        self._runner = Runner(model, max_batch=max_batch, max_length=max_length)
        self.max_length = self._runner.max_length
        if can_compile(compile):
            from PIL import Image

            with torch.inference_mode():
                self._runner.compile(processor.pixel_values([Image.new("RGB", (64, 64))]))
        self._ends = frozenset(end_tokens(model.generation_config))
        self._scheduler = Scheduler(
            self._runner,
            max_batch=max_batch,
            max_queue=max_queue,
            cache=ImageCache(image_cache_bytes),
            suppressed=never_generated(model),
        )
        self.pictures = Pictures(processor.pixel_values, min(_PICTURES, image_cache_bytes))
        self._tokenising = threading.Lock()  # fast tokenizers are not thread-safe
        release_helpers()
        self._loop = Loop(self._scheduler)
        self._ending = weakref.finalize(self, self._loop.close)  # also when nobody has it any more

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        dtype: str = "auto",
        device: str | None = None,
        compile: Compile = "never",
        quantize: str | None = None,
        revision: str | None = None,
        progress: bool = True,
        **engine_options: Any,
    ) -> Engine:
        """Load a model from a folder or the hub, onto the GPU if there is one; a LLaVA answers as LLaVA.

        Args:
            source: a folder or a hub id.
            dtype: "auto" takes bfloat16 where the hardware multiplies it fast.
            device: where it computes.
            compile: see the class.
            quantize: "int8" holds the LLM's weights in int8; None keeps them as they are.
            revision: of a model on the hub.
            progress: say on stderr that the model loads, if that is a terminal.
            **engine_options: see the class.

        Raises:
            FileNotFoundError: neither a folder nor a model on the hub.
            ValueError: an option that makes no sense.
        """
        if not Path(source).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source)):
            raise FileNotFoundError(f"no such model folder: {source}")
        location = {} if revision is None else {"revision": revision}
        with status(f"{source}: starting", show=progress) as say:
            try:
                with quiet_transformers():
                    model, processor = load_model(
                        source, dtype=dtype, device=device, quantize=quantize, progress=progress, **location
                    )
            except OSError as error:
                if Path(source).is_dir():
                    raise
                raise FileNotFoundError(
                    f"{source} is neither a folder nor a model that the hub gives: {error}"
                ) from error
            if can_compile(compile):
                say(f"{source}: compiling, once for each start; some minutes on a CPU")
            engine = cls(model, processor, compile=compile, **engine_options)
        engine.name = str(source)
        return engine

    def answer(
        self,
        messages: Messages,
        images: Iterable[ImageLike] = (),
        *,
        timeout: float | None = None,
        **sampling: Any,
    ) -> Answer:
        """Ask, and wait for the whole answer.

        Args:
            messages: a question, or a list of messages (`role`, `content`); a content is a string or a list of parts,
                `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}`. An image part without an image
                takes the next one of `images`.
            images: pictures, paths, bytes or data URLs; what the messages leave over is shown before the last question.
            timeout: seconds until the answer ends where it is (`finish_reason` "timeout").
            **sampling: fields of `Sampling`; by default the likeliest token each time.

        Raises:
            ValueError: bad messages, images or options, or a prompt that is too long; says what was expected.
            EngineBusy: the queue is full.
            EngineClosed: the engine takes nothing any more.
        """
        return self.stream(messages, images, timeout=timeout, **sampling).result()

    def answer_many(
        self, conversations: Iterable[Any], *, timeout: float | None = None, **sampling: Any
    ) -> list[Answer]:
        """Ask many questions, which run together; answers come in the order of the questions.

        Args:
            conversations: each as `messages` of `answer`, or a pair of messages and images. There may be more than
                have room in the queue.
            timeout: of each, from the moment it is queued.
            **sampling: see `answer`.

        Raises:
            ValueError: see `answer`; the other questions are cancelled.
        """
        options = Sampling(**sampling)
        streams: list[Stream] = []
        try:
            for each in conversations:
                messages, images = each if isinstance(each, tuple) else (each, ())
                request = self._request(messages, images, options, timeout)
                with self._scheduler.changed:
                    self._scheduler.changed.wait_for(self._scheduler.has_room)
                    request.count_from(time.monotonic())
                    self._scheduler.add(request)
                streams.append(request.stream)
            return [stream.result() for stream in streams]
        except BaseException:  # nobody will read the others
            for stream in streams:
                stream.cancel()
            raise

    def stream(
        self,
        messages: Messages,
        images: Iterable[ImageLike] = (),
        *,
        timeout: float | None = None,
        **sampling: Any,
    ) -> Stream:
        """Ask, and read the answer as it comes; see `answer`.

        Example:
            for piece in engine.stream("What is this?", ["cat.jpg"]):
                print(piece.text, end="", flush=True)
        """
        return self.submit(messages, images, Sampling(**sampling), timeout=timeout)

    def submit(
        self,
        messages: Messages,
        images: Iterable[ImageLike] = (),
        sampling: Sampling | None = None,
        *,
        timeout: float | None = None,
    ) -> Stream:
        """Ask with ready-made options; see `answer`. Safe to call from any thread."""
        self._scheduler.refuse()  # before the work of reading images
        request = self._request(messages, images, sampling or Sampling(), timeout)
        self._scheduler.add(request)
        return request.stream

    def stats(self) -> EngineStats:
        """Return counters."""
        return self._scheduler.stats()

    @contextmanager
    def exclusive(self) -> Iterator[Any]:
        """Borrow the model: the step under way ends, and no other begins before the block has ended.

        Behind another borrower one step comes first, if there is something to answer.

        Requests may be made in the block, but no answer comes before its end: do not wait for one. Leave the weights
        as they are: compiled graphs hold them, and the image cache what they made.

        Example:
            with engine.exclusive() as model:
                outputs = model(**inputs, output_attentions=True)
        """
        with self._loop.paused():
            try:
                yield self.model
            finally:
                release_helpers()

    def drain(self, timeout: float | None = None) -> bool:
        """Take nothing new, and finish what runs and waits.

        Args:
            timeout: seconds to wait.

        Returns:
            whether everything has ended.
        """
        return self._loop.drain(timeout)

    def close(self) -> None:
        """Stop: what still runs or waits ends with `EngineClosed`."""
        self._ending()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _request(
        self, messages: Messages, images: Iterable[ImageLike], sampling: Sampling, timeout: float | None
    ) -> Request:
        """Make a request of what a caller gave; in the caller's thread."""
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout={timeout!r}: expected seconds above 0, or None")
        submitted = time.monotonic()
        unknown = [token for token in sampling.logit_bias if token >= self.model.config.llm.vocab_size]
        if unknown:
            raise ValueError(
                f"logit_bias: expected token ids below {self.model.config.llm.vocab_size}, got {unknown[0]}"
            )
        prompt = self._prompt(conversation(messages, images, self.pictures.load))
        room = self.max_length - len(prompt.ids)
        if room < 1:
            raise ValueError(
                f"the prompt has {len(prompt.ids)} tokens ({prompt.visual_tokens} of them visual): expected at most "
                f"{self.max_length - 1}, which leaves room for an answer within max_length={self.max_length}"
            )
        return Request(
            prompt,
            sampling,
            timeout=timeout,
            tokenizer=self.processor.tokenizer,
            ends=self._ends,
            device=self._runner.device,
            stream=Stream(self._scheduler.wake),
            submitted=submitted,
            room=room,
        )

    def _prompt(self, turns: list[dict[str, Any]]) -> Prompt:
        pictures = [part["image"] for turn in turns for part in turn["content"] if part["type"] == "image"]
        pixels = torch.stack([picture.pixels_chw for picture in pictures]) if pictures else None
        # Counts are all that tokenising needs of images.
        counts = [self.processor.count_image_tokens(*picture.pixels_chw.shape[-2:]) for picture in pictures]
        blanks = iter([torch.empty(count, 0) for count in counts])
        with self._tokenising:
            encoded = self.processor.encode(
                turns, add_generation_prompt=True, image_features=lambda image: next(blanks)
            )
        release_helpers()
        ids, image_ids = encoded["input_ids"].tolist(), encoded["image_ids"]
        digests = [picture.digest for picture in pictures]
        return Prompt(ids, image_ids, pixels, *_path(ids, image_ids.tolist(), digests))


def _path(
    ids: Sequence[int], image_ids: Sequence[int], digests: Sequence[bytes]
) -> tuple[TokenPath, list[int]]:
    """Return the identities of tokens, and the number of tokens up to the end of each image."""
    tokens: list[Any] = list(ids)
    ends: list[int] = []
    place = 0
    for index, image in enumerate(image_ids):
        if image < 0:
            continue
        if image == len(ends):
            ends.append(index)
            place = 0
        tokens[index] = (digests[image], place)
        place += 1
        ends[image] = index + 1
    path = TokenPath()
    path.extend(tokens)
    return path, ends
