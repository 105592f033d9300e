"""The LLM as a vision encoder: features of an image from inside the LLM, where it is an extended vision transformer.

    image -> tower -> projector -> layer 0 | LLM layer -> layer 1 | LLM layer -> layer 2 | ...

The image runs alone, or behind the tokens that come before it in a prompt, in an ordinary forward pass of the model
that ends after the last layer that is asked for: text behind the image changes nothing of it.

Shapes: n images, p tokens of a prefix, v visual tokens, (h, w) patches, d LLM width.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple, overload

import torch


class ImageEncoding(NamedTuple):
    """Features of images after one layer.

    Attributes:
        patches: (n, h, w, d), in the model's dtype and on its device.
        pooled: (n, d) mean over patches.
        layer: of the LLM: 0 is the projector's output, i is after layer i.
    """

    patches: torch.Tensor
    pooled: torch.Tensor
    layer: int


class _Done(Exception):
    """The last layer that is needed has run."""


class EncodesImages:
    """`encode_image`, for models with a tower, a projector and an LLM."""

    @overload
    def encode_image(self, images: torch.Tensor, layer: int = -1, *, prefix: Any = None) -> ImageEncoding: ...
    @overload
    def encode_image(
        self, images: torch.Tensor, layer: Sequence[int], *, prefix: Any = None
    ) -> list[ImageEncoding]: ...
    @torch.no_grad()
    def encode_image(
        self,
        images: torch.Tensor,
        layer: int | Sequence[int] = -1,
        *,
        prefix: torch.Tensor | Sequence[int] | None = None,
    ) -> ImageEncoding | list[ImageEncoding]:
        """Encode images by tower, projector and the first layers of the LLM.

        Features are the residual stream, before the LLM's last norm. Attention between patches is as the model has it:
        in both directions in a LLaViT, causal in a LLaVA. No logits, no cache, no gradient, no dropout, and no layer
        after the last one that is asked for.

        Args:
            images: (n, 3, height, width), of `LlavitProcessor.pixel_values`.
            layer: 0 for the projector's output, i for after layer i of the LLM; negative ones count from the end.
                Several layers come out of one pass.
            prefix: token ids before the image, of `LlavitProcessor.image_prefix`: the image then stands where it does
                in a prompt. None for the image alone.

        Returns:
            `ImageEncoding`, or a list of them in the order of `layer`.

        Raises:
            ValueError: a layer that there is not; a prefix with an image token; visual tokens that are no grid of
                patches.

        Example:
            >>> from transformers import CLIPVisionConfig, LlamaConfig
            >>> from llavit import LlavitConfig, LlavitModel
            >>> vision = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=2,
            ...     num_attention_heads=2, image_size=4, patch_size=2)
            >>> text = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=3,
            ...     num_attention_heads=2, num_key_value_heads=1)
            >>> model = LlavitModel(LlavitConfig(vision_config=vision, text_config=text, image_token_index=15))
            >>> encoded = model.encode_image(torch.rand(5, 3, 4, 4), layer=2)
            >>> encoded.patches.shape, encoded.pooled.shape
            (torch.Size([5, 2, 2, 8]), torch.Size([5, 8]))
        """
        return _encode(self, images, layer, prefix)


def layer_numbers(layers: Sequence[int], count: int) -> list[int]:
    """Return numbers from 0 (the projector's output) to `count`, the layers of the LLM.

    Raises:
        ValueError: there is no such layer, or none is chosen.

    Example:
        >>> layer_numbers([0, -1, 3], count=30)
        [0, 30, 3]
    """
    if not len(layers):
        raise ValueError("layer: expected at least one, got none")
    for layer in layers:
        if not -count - 1 <= layer <= count:
            raise ValueError(
                f"layer {layer}: expected 0 (projector) to {count} (after the last layer of the LLM), or "
                f"{-count - 1} to -1 from the end"
            )
    return [int(layer) % (count + 1) for layer in layers]


def patch_grid(config: Any, images: torch.Tensor) -> tuple[int, int]:
    """Return (h, w), the patches that a tower makes of images (n, 3, height, width)."""
    height, width = images.shape[-2:]
    return height // config.tower.patch_size, width // config.tower.patch_size


def on_grid(tokens_nvd: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Lay (n, v, d) visual tokens on (n, h, w, d) patches; a CLS token before them is left out.

    Raises:
        ValueError: they are no grid of patches.

    Example:
        >>> on_grid(torch.zeros(1, 7, 4), (2, 3)).shape
        torch.Size([1, 2, 3, 4])
    """
    extra = tokens_nvd.shape[1] - grid[0] * grid[1]
    if extra not in (0, 1):
        raise ValueError(
            f"expected {grid[0]} x {grid[1]} visual tokens, one for each patch, got {tokens_nvd.shape[1]}"
        )
    return tokens_nvd[:, extra:].unflatten(1, grid)


def _encode(model: Any, images: torch.Tensor, layer: int | Sequence[int], prefix: Any) -> Any:
    if images.ndim != 4:
        raise ValueError(
            f"images: expected (n, 3, height, width), as processor.pixel_values gives, got shape {tuple(images.shape)}"
        )
    body = getattr(model, "model", model)  # without the head
    layers = body.language_model.layers
    asked = [layer] if isinstance(layer, int) else list(layer)
    wanted = layer_numbers(asked, len(layers))
    inputs = _inputs(model, body, images, prefix)
    kept: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(uncompiled(model))
        for number in set(wanted):
            stack.enter_context(_keeping(layers, number, kept, ends=number == max(wanted)))
        with suppress(_Done):
            body(**inputs, use_cache=False)
    grid = patch_grid(model.config, images)
    visual = inputs["image_ids"][0] >= 0
    found = {number: on_grid(kept[number][:, visual], grid) for number in kept}
    encoded = [ImageEncoding(found[n], found[n].float().mean((1, 2)).to(found[n].dtype), n) for n in wanted]
    return encoded[0] if isinstance(layer, int) else encoded


def _inputs(model: Any, body: Any, images: torch.Tensor, prefix: Any) -> dict[str, torch.Tensor]:
    """Make a batch of one image a row, each behind the prefix; the tower runs here, so its tokens can be counted."""
    image_token = model.config.image_token_id
    prefix_p = torch.as_tensor([] if prefix is None else prefix, dtype=torch.long, device=model.device)
    if prefix_p.ndim != 1 or bool((prefix_p == image_token).any()):
        raise ValueError(
            "prefix: expected the token ids (p,) that come before the image, without an image token; "
            "`processor.image_prefix()` gives them"
        )
    features = body.encode_images(images)
    ids = torch.full((len(images), features.shape[1]), image_token, device=model.device)
    image_ids = torch.zeros_like(ids)
    before = prefix_p.expand(len(images), -1)
    return {
        "input_ids": torch.cat([before, ids], 1),
        "image_ids": torch.cat([torch.full_like(before, -1), image_ids], 1),
        "image_features": features,
    }


@contextmanager
def _keeping(layers: Any, number: int, kept: dict[int, torch.Tensor], ends: bool) -> Iterator[None]:
    """Keep what comes before layer 0 or after layer `number`; end the forward pass there if it is the last."""

    def keep(hidden: Any) -> None:
        kept[number] = hidden[0] if isinstance(hidden, tuple) else hidden
        if ends:
            raise _Done

    def before(module: Any, args: Any, kwargs: Any) -> None:
        keep(args[0] if args else kwargs["hidden_states"])

    def after(module: Any, args: Any, output: Any) -> None:
        keep(output)

    if number == 0:
        handle = layers[0].register_forward_pre_hook(in_this_thread(before), with_kwargs=True)
    else:
        handle = layers[number - 1].register_forward_hook(in_this_thread(after))
    try:
        yield
    finally:
        handle.remove()


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that does nothing in other threads: a module calls its hooks in whichever thread it runs.

    Example:
        >>> seen = []
        >>> hook = in_this_thread(seen.append)
        >>> other = threading.Thread(target=hook, args=("theirs",))
        >>> other.start(), other.join(), hook("mine"), seen
        (None, None, None, ['mine'])
    """
    mine = threading.get_ident()

    @functools.wraps(hook)
    def only_mine(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if threading.get_ident() == mine else None

    return only_mine


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Run modules as in evaluation; those that were in training are so again afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Run layers that were compiled in place as they are written, so that hooks see them. Touches this model only."""
    compiled = {m: m._compiled_call_impl for m in model.modules() if m._compiled_call_impl}
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call


__all__ = ["EncodesImages", "ImageEncoding"]
