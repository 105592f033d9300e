"""A batch as its documents: no padding and no packing in what is computed a token at a time.

A batch is rows of tokens, (b, l), with padding behind some and several documents in others. All of an LLM but its
attention works on one token at a time, so it can run on the tokens alone, as one row without padding: first all text
tokens, then all visual ones, whose projections then take slices and not gathers (`routing.py`). Attention alone needs
to know which tokens belong together (`attention.py`), and sees every document as a row of its own.

Shapes: b batch, l sequence, n tokens (without padding), s documents, m tokens of the longest document.
"""

from typing import Any, NamedTuple

import torch

from llavit.model.compat import cache_argument
from llavit.model.masks import TEXT, visual_attention_mask
from llavit.model.routing import VisualRoute

IMPLEMENTATION = "documents"
"""Name of the attention implementation that goes with it."""


class Documents(NamedTuple):
    """Where the tokens of a batch are: in the batch, in the row of tokens, and in their documents.

    Attributes:
        order: (n,) places of the tokens in the flattened batch (b*l); text first, then visual.
        texts: how many are text.
        places: (s, m) place of each document's tokens in the row of tokens; -1 behind a shorter document.
        inverse: (n,) place of each token in the flattened documents (s*m).
        image_ids: (s, m) image ids, as in `masks.py`.
    """

    order: torch.Tensor
    texts: int
    places: torch.Tensor
    inverse: torch.Tensor
    image_ids: torch.Tensor

    @classmethod
    def of(
        cls,
        image_ids_bl: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> "Documents":
        """Find the documents of a batch.

        Args:
            image_ids_bl: (b, l) image ids.
            attention_mask: (b, l), 0 at padding, or None.
            position_ids: (b, l); without `attention_mask`, a restart begins a new document, as in transformers.

        Example:
            >>> documents = Documents.of(torch.tensor([[-1, 0, -1]]), position_ids=torch.tensor([[0, 1, 0]]))
            >>> documents.order.tolist(), documents.places.tolist()
            ([0, 2, 1], [[0, 2], [1, -1]])
        """
        device = image_ids_bl.device
        starts = torch.zeros_like(image_ids_bl, dtype=torch.bool)
        starts[:, 0] = True
        if attention_mask is None and position_ids is not None:
            starts[:, 1:] |= position_ids.diff(dim=1) != 1
        document = starts.flatten().cumsum(0) - 1
        tokens = torch.arange(image_ids_bl.numel(), device=device)
        if attention_mask is not None:
            tokens = attention_mask.flatten().nonzero().squeeze(1)
        image_ids = image_ids_bl.flatten()[tokens]
        _, document, lengths = document[tokens].unique_consecutive(return_inverse=True, return_counts=True)
        longest = int(lengths.max())
        rank = torch.arange(len(tokens), device=device) - (lengths.cumsum(0) - lengths)[document]
        cells = document * longest + rank  # of tokens in reading order
        visual = image_ids != TEXT
        sort = torch.cat([(~visual).nonzero().squeeze(1), visual.nonzero().squeeze(1)])
        inverse = cells[sort]
        shape = (len(lengths), longest)
        places = torch.full((shape[0] * shape[1],), -1, device=device)
        places[inverse] = torch.arange(len(tokens), device=device)
        ids = torch.full_like(places, TEXT)
        ids[cells] = image_ids
        return cls(tokens[sort], int((~visual).sum()), places.view(shape), inverse, ids.view(shape))

    def take(self, x_bld: torch.Tensor) -> torch.Tensor:
        """Lay a batch's tokens in one row: (b, l, ...) to (1, n, ...)."""
        return x_bld.flatten(0, 1).index_select(0, self.order).unsqueeze(0)

    def put_back(self, x_1nd: torch.Tensor, rows: int, length: int) -> torch.Tensor:
        """Lay the row of tokens back into a batch, (1, n, d) to (b, l, d), with zeros at padding."""
        x_nd = x_1nd.squeeze(0)
        return (
            x_nd.new_zeros(rows * length, x_nd.shape[-1])
            .index_copy(0, self.order, x_nd)
            .view(rows, length, -1)
        )


def gather_heads(x_nhd: torch.Tensor, places_sm: torch.Tensor, groups: int) -> torch.Tensor:
    """Give every document a row, heads first; heads of one group lie one behind the other.

    Behind a shorter document are copies of the first token: harmless as keys, which a causal mask hides, but not as
    gradients (`zero_behind`).

    Returns:
        (s, groups, h/groups * m, d).
    """
    heads = x_nhd.shape[1]
    index = places_sm.clamp(min=0).unsqueeze(1) * heads + torch.arange(heads, device=x_nhd.device)[:, None]
    s, m = places_sm.shape
    return x_nhd.flatten(0, 1).index_select(0, index.flatten()).view(s, groups, heads // groups * m, -1)


def scatter_heads(x_sgd: torch.Tensor, inverse_n: torch.Tensor, heads: int, length: int) -> torch.Tensor:
    """Undo `gather_heads`: (s, groups, h/groups * m, d) to (n, h, d)."""
    document, rank = inverse_n // length, inverse_n % length
    index = (document[:, None] * heads + torch.arange(heads, device=x_sgd.device)) * length + rank[:, None]
    return x_sgd.flatten(0, 2).index_select(0, index.flatten()).view(len(inverse_n), heads, -1)


def zero_behind(x_sgd: torch.Tensor, places_sm: torch.Tensor) -> torch.Tensor:
    """Set to zero, in place, what `gather_heads` laid behind shorter documents."""
    s, m = places_sm.shape
    view = x_sgd.view(s, -1, m, x_sgd.shape[-1])
    view.masked_fill_((places_sm < 0)[:, None, :, None], 0)
    return x_sgd


def may_run_on_documents(model: Any, attention_mask: Any, kwargs: dict[str, Any]) -> bool:
    """Say whether a pass without a cache can run so: its end alone is asked for, and its padding is in a 2-D mask."""
    return (
        model.language_model.config._attn_implementation == IMPLEMENTATION
        and kwargs.get("use_cache") is False
        and not kwargs.get("output_hidden_states")
        and (
            attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2)
        )
    )


def run_on_documents(
    model: Any,
    inputs_embeds: torch.Tensor,
    image_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Any, torch.Tensor]:
    """Run the LLM on a batch's tokens in one row.

    Args:
        model: a `LlavitModel`.
        inputs_embeds: (b, l, d), visual features in their places.
        image_ids: (b, l), or None for text alone.
        attention_mask: as in `Documents.of`.
        position_ids: (b, l), or None to count from 0 in each row.
        kwargs: passed on to the LLM.

    Returns:
        the LLM's output, and the last hidden states, (b, l, d).
    """
    rows, length = inputs_embeds.shape[:2]
    if image_ids is None:
        image_ids = torch.full((rows, length), TEXT, device=inputs_embeds.device)
    documents = Documents.of(image_ids, attention_mask, position_ids)
    if position_ids is None:
        position_ids = torch.arange(length, device=inputs_embeds.device).expand(rows, length)
    if model.config.visual_qkv:
        kwargs["visual_route"] = VisualRoute(None, None, documents.texts)
    blocks = documents.image_ids
    if not model.config.bidirectional_visual_attention:
        blocks = torch.full_like(blocks, TEXT)
    like = inputs_embeds.new_empty(*blocks.shape, 1)
    outputs = model.language_model(
        attention_mask=visual_attention_mask(model.language_model.config, blocks, like, None, None, None),
        position_ids=documents.take(position_ids),
        inputs_embeds=documents.take(inputs_embeds),
        documents=documents,
        **{**kwargs, **cache_argument(None), "return_dict": True},
    )
    return outputs, documents.put_back(outputs.last_hidden_state, rows, length)
