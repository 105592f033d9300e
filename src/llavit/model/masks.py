"""Which token may see which (paper: change 2).

Text sees all that came before it. The visual tokens of one image see each other in both directions, and all
that came before the image. Nothing sees later text or a later image. Three examples (`T` text, `a` a patch of
image a, `b` of image b; rows see columns marked 1):

        T a a T         a a b b         T a a T      with bidirectional_visual_attention off
    T   1 0 0 0     a   1 1 0 0     T   1 0 0 0
    a   1 1 1 0     a   1 1 0 0     a   1 1 0 0
    a   1 1 1 0     b   1 1 1 1     a   1 1 1 0
    T   1 1 1 1     b   1 1 1 1     T   1 1 1 1

The mask itself is made by transformers from *image ids*: -1 for text, and a number for each visual token that
no other image in the row has. It must be unique: two neighbouring images under one id would see each other,
and packed documents would leak.

Shapes: b batch, l sequence.
"""

from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.masking_utils import create_masks_for_generate

from llavit.model.compat import cache_argument

TEXT = -1
"""Image id of a text token."""


def image_ids_from_counts(visual_mask_bl: torch.Tensor, tokens_per_image: torch.Tensor) -> torch.Tensor:
    """Number the images behind the visual tokens of a batch.

    Images are assigned in reading order: row by row, left to right, as pixel values are.

    Args:
        visual_mask_bl: (b, l) bool, true at visual tokens.
        tokens_per_image: (n,) visual tokens of each image; the sum is the number of visual tokens.

    Returns:
        (b, l) long: `TEXT`, or the image's number in the batch (0 to n-1).

    Example:
        >>> mask = torch.tensor([[False, True, True, True, True]])
        >>> image_ids_from_counts(mask, torch.tensor([2, 2])).tolist()
        [[-1, 0, 0, 1, 1]]
    """
    ends = tokens_per_image.to(visual_mask_bl.device).cumsum(0)
    rank = visual_mask_bl.reshape(-1).cumsum(0) - 1
    number = torch.searchsorted(ends, rank, right=True).view(visual_mask_bl.shape)
    return torch.where(visual_mask_bl, number, TEXT)


def is_packed(attention_mask: Any, position_ids: torch.Tensor | None) -> bool:
    """Whether rows hold several documents: positions that restart, and no padding mask, as in transformers.

    Example:
        >>> is_packed(None, torch.tensor([[0, 1, 0, 1]])), is_packed(None, torch.tensor([[0, 1, 2, 3]]))
        (True, False)
    """
    if attention_mask is not None or position_ids is None or position_ids.ndim != 2:
        return False
    return bool((position_ids.diff(dim=1) != 1).any())


def visual_attention_mask(
    text_config: PreTrainedConfig,
    image_ids_bl: torch.Tensor,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache: Any | None,
    position_ids: torch.Tensor | None,
) -> Any:
    """Make the mask (or masks by layer type) in which each image is one bidirectional block.

    Args:
        text_config: the LLM's configuration; its attention implementation decides the kind of mask.
        image_ids_bl: (b, l) image ids of the present tokens.
        inputs_embeds: (b, l, d); only shape, dtype and device are read.
        attention_mask: (b, past + l) padding mask, or None.
        cache: of earlier tokens, or None.
        position_ids: (b, l), where a restart marks a packed document; or None.

    Returns:
        what the LLM takes as `attention_mask`: a 4-D tensor or a BlockMask, or a dict of them.

    Raises:
        ValueError: for an attention implementation that would drop the bidirectional part, or a ready-made mask, which
            has none.
    """
    require_block_masks(text_config)
    if attention_mask is not None and getattr(attention_mask, "ndim", None) != 2:
        shape = getattr(attention_mask, "shape", None)
        raise ValueError(
            f"attention_mask: expected (b, past + l), 0 at padding, got "
            f"{type(attention_mask).__name__ if shape is None else tuple(shape)}: a ready-made mask is taken as it is, "
            "and bidirectional visual attention would be lost without a word. Give the padding mask (packed documents: "
            "position_ids that restart), or set bidirectional_visual_attention=False in the configuration."
        )
    past = cache.get_seq_length() if cache is not None else 0
    if isinstance(past, torch.Tensor) or past > 0:
        image_ids_bl = torch.nn.functional.pad(image_ids_bl, (int(past), 0), value=TEXT)
    return create_masks_for_generate(
        config=text_config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        position_ids=position_ids,
        block_sequence_ids=image_ids_bl,
        **cache_argument(cache),
    )


def require_block_masks(text_config: PreTrainedConfig) -> None:
    """Refuse attention implementations that cannot take a mask with bidirectional blocks.

    Raises:
        ValueError: for flash_attention_*, which would be causal in silence.
    """
    backend = text_config._attn_implementation or ""
    if "flash" in backend:
        raise ValueError(
            f"attention implementation {backend!r} ignores custom masks: bidirectional visual attention would be "
            "lost without a word. Use attn_implementation='sdpa' (or 'flex_attention' on GPU), or set "
            "bidirectional_visual_attention=False in the configuration."
        )
