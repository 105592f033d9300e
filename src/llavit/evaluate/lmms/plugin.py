"""lmms-eval's model `llavit`: found through the entry point `lmms_eval.models`, no fork needed.

    python -m lmms_eval --model llavit --model_args pretrained=FOLDER,dtype=bfloat16 --tasks mmvp --batch_size 8

lmms-eval's chat interface hands over requests with six arguments: the context as text, a function from a row of the
data set to chat messages, `generation_kwargs`, the row's number, the task and the split. It asks for generation only.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from tqdm import tqdm

from llavit.evaluate.lmms.asking import Answer, answer_batch, to_messages
from llavit.evaluate.lmms.decoding import Decoding
from llavit.loading import load_model

logger = logging.getLogger(__name__)


class LlavitLmms(lmms):
    """A LLaViT or LLaVA model for lmms-eval, in its chat interface.

    Args:
        pretrained: a folder or a hub id.
        dtype: auto, bfloat16, float16 or float32.
        device: as lmms-eval's `--device`; by default that of the process.
        batch_size: requests answered together; those of equal decoding only.
        keep_model: keep the weights when lmms-eval is done with its requests, for a next task.
        **kwargs: for `from_pretrained`: attn_implementation, revision, visual_qkv, bidirectional_visual_attention.

    Attributes:
        prompts: the rendered prompt of each task's first row, one image token per image.
        long: requests by task whose prompt and answer are longer than what the LLM was trained on.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        keep_model: bool = False,
        **kwargs: Any,
    ):
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(
                f"batch_size={batch_size}: expected a number from 1; llavit does not search for one"
            )
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            device = str(self.accelerator.device)
        self.model, self.processor = load_model(pretrained, dtype=dtype, device=device, **kwargs)
        self.batch_size = int(batch_size)
        self.keep_model = keep_model
        self.prompts: dict[str, str] = {}
        self._shown: dict[str, int] = {}  # the row of each of these prompts
        self.long: dict[str, list[str]] = defaultdict(list)
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    @property
    def device(self) -> Any:
        """Where the model computes."""
        return self.accelerator.device if self.accelerator.num_processes > 1 else self.model.device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer requests, batched by equal decoding and like length; in their order.

        Raises:
            RuntimeError: a request failed; names task, split and rows. No answer is made up for it.
        """
        groups: dict[Decoding, list[int]] = defaultdict(list)
        for position, request in enumerate(requests):
            groups[Decoding.of(request.args[2], request.args[4])].append(position)
        answers: dict[int, Answer] = {}
        started = time.perf_counter()
        with tqdm(total=len(requests), desc="answering", disable=self.rank != 0) as bar:
            for decoding, positions in groups.items():
                positions.sort(key=lambda position: len(str(requests[position].args[0])))
                for start in range(0, len(positions), self.batch_size):
                    batch = positions[start : start + self.batch_size]
                    found = self._answer([requests[position] for position in batch], decoding)
                    answers.update(zip(batch, found, strict=True))
                    bar.update(len(batch))
        seconds = time.perf_counter() - started
        tokens = sum(answer.new_tokens for answer in answers.values())
        log_metrics(
            total_gen_tokens=tokens,
            total_elapsed_time=seconds,
            avg_speed=tokens / seconds if seconds else 0.0,
        )
        return [_result(answers[position]) for position in range(len(requests))]

    def conversation(self, request: Instance) -> list[dict[str, Any]]:
        """Return what a request asks, as llavit's conversation; its images are decoded here."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        return to_messages(doc_to_messages(self.task_dict[task][split][doc_id]), _name(request))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not asked for by the chat interface, which builds requests of generation only."""
        raise NotImplementedError(
            "lmms-eval's chat interface asks for generation only; for scores by likelihood use `llavit eval --mode`"
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Tasks of several rounds are not supported."""
        raise NotImplementedError(
            f"several rounds ({requests[0].task_name}) are not supported by llavit's plug-in"
        )

    def clean(self) -> None:
        """Free the model's memory, as lmms-eval asks before it judges; with `keep_model` keep it."""
        if not self.keep_model:
            super().clean()

    def _answer(self, requests: Sequence[Instance], decoding: Decoding) -> list[Answer]:
        names = [_name(request) for request in requests]
        try:
            conversations = [self.conversation(request) for request in requests]
            answers = answer_batch(self.model, self.processor, conversations, decoding, names)
        except Exception as error:
            raise RuntimeError(f"no answer to {', '.join(names)}: {error}") from error
        for request, messages, answer in zip(requests, conversations, answers, strict=True):
            doc_id, task = request.args[3], request.args[4]
            if doc_id < self._shown.get(task, doc_id + 1):
                self._shown[task] = doc_id
                self.prompts[task] = self.processor.render(messages, add_generation_prompt=True)
            self._watch_length(request, answer)
        return answers

    def _watch_length(self, request: Instance, answer: Answer) -> None:
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if most is None or answer.prompt_tokens + answer.new_tokens <= most:
            return
        task = request.args[4]
        if not self.long[task]:
            length = answer.prompt_tokens + answer.new_tokens
            logger.warning(f"{_name(request)}: {length} tokens, and the LLM was made for {most}")
        self.long[task].append(_name(request))


def _name(request: Instance) -> str:
    *_, doc_id, task, split = request.args
    return f"{task}/{split}/{doc_id}"


def _result(answer: Answer) -> GenerationResult:
    return GenerationResult(answer.text, TokenCounts(answer.prompt_tokens, answer.new_tokens))
