"""vLLM's scheduler, which then never ends a step inside an image.

`disable_chunked_mm_input` alone does not see to that: it looks at images that begin after what is computed already. An
image at the very beginning of a chunk, or one inside of which a prefix-cache hit ended, is still cut where the budget
of tokens is small.
"""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from llavit.serve.vllm.spans import whole_images


class _WholeImages:
    def _try_schedule_encoder_inputs(
        self,
        request: Any,
        num_computed_tokens: int,
        num_new_tokens: int,
        budget: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        places = (feature.mm_position for feature in request.mm_features or ())
        images = [(place.offset, place.offset + place.length) for place in places]
        new = whole_images(images, num_computed_tokens, num_new_tokens)
        parent: Any = super()
        return parent._try_schedule_encoder_inputs(request, num_computed_tokens, new, budget, *args, **kwargs)


class LlavitScheduler(_WholeImages, Scheduler):
    """For synchronous scheduling."""


class LlavitAsyncScheduler(_WholeImages, AsyncScheduler):
    """For asynchronous scheduling."""


def make_scheduler(vllm_config: Any, **kwargs: Any) -> Any:
    """Make a scheduler of the kind that the configuration asks for; vLLM decides on that late."""
    scheduler = LlavitAsyncScheduler if vllm_config.scheduler_config.async_scheduling else LlavitScheduler
    return scheduler(vllm_config=vllm_config, **kwargs)
