"""From images to the LLM's input: the tower's features, their projection, and their places among the tokens.

Shapes: b batch, l sequence, v visual tokens, n images, d LLM width.
"""

import math
from typing import Any

import torch

from llavit.model.encoding import in_this_thread
from llavit.model.masks import image_ids_from_counts


class ReadsImages:
    """What `LlavitModel` does with images, for models with a tower and a projector."""

    config: Any
    vision_tower: Any
    multi_modal_projector: Any
    get_image_features: Any
    dtype: Any
    device: Any

    def _project_images(
        self,
        pixel_values: torch.Tensor | None,
        layer: int | list[int] | None,
        strategy: str | None,
        image_sizes: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> list[torch.Tensor] | None:
        """Return the projected features of each image, (v_i, d), or None without images."""
        encoded = (kwargs.pop("mm_encoder_outputs", None) or {}).get("image")
        if encoded is None and pixel_values is not None:
            own = self.config.vision_feature_layer
            if layer is not None and _count(layer) != _count(own):
                raise ValueError(
                    f"vision_feature_layer: expected as many layers as the configuration has ({own}), which the "
                    f"projector reads side by side, got {layer}"
                )
            encoded = self.get_image_features(
                pixel_values=pixel_values,
                vision_feature_layer=layer,
                vision_feature_select_strategy=strategy,
                image_sizes=image_sizes,
                return_dict=True,
            )
        return None if encoded is None else list(encoded.pooler_output)

    def _image_ids(
        self, input_ids: torch.Tensor | None, features: list[torch.Tensor] | None
    ) -> torch.Tensor | None:
        """Derive (b, l) image ids from the image tokens and the number of features of each image."""
        if input_ids is None:
            if features is not None:
                raise ValueError(
                    "inputs_embeds with images: expected image_ids, to know where they go; got none"
                )
            return None
        visual = input_ids == self.config.image_token_id
        counts = [len(feature) for feature in features or ()]
        expected, got = int(visual.sum()), sum(counts)
        if expected != got:
            each = f", {counts[0]} each" if counts and len(set(counts)) == 1 else ""
            raise ValueError(
                f"image tokens and image features differ: the prompts have {expected} image tokens, the "
                f"{len(counts)} images give {got} features{each}. Build prompts with LlavitProcessor, which "
                "counts both with one function."
            )
        return image_ids_from_counts(visual, torch.tensor(counts, dtype=torch.long, device=visual.device))

    def _insert_features(
        self, inputs_embeds: torch.Tensor, image_ids: torch.Tensor | None, features: list[torch.Tensor]
    ) -> torch.Tensor:
        features_vd = torch.cat(features).to(inputs_embeds.device, inputs_embeds.dtype)
        if image_ids is None:
            raise ValueError(
                f"{len(features)} images were given, but no token of the input is an image token"
            )
        visual = image_ids >= 0
        if int(visual.sum()) != len(features_vd):
            raise ValueError(
                f"image tokens and image features differ: image_ids mark {int(visual.sum())} visual tokens, the "
                f"{len(features)} images give {len(features_vd)} features"
            )
        return inputs_embeds.masked_scatter(visual.unsqueeze(-1), features_vd)

    @torch.no_grad()
    def calibrate_features(self, pixel_values: torch.Tensor) -> None:
        """Measure the statistics by which `vision_feature_norm` standardises features; once, before training.

        Args:
            pixel_values: (n, 3, height, width), some dozens of images.

        Raises:
            ValueError: if `vision_feature_norm` is off.
        """
        self.multi_modal_projector.calibrate(self.encode_images(pixel_values))

    @torch.no_grad()
    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Give what the projector reads: the tower's features, of all chosen layers side by side.

        Args:
            pixel_values: (n, 3, height, width).

        Returns:
            (n, v, layers * tower width); `forward` takes them as `image_features`.
        """
        read: list[torch.Tensor] = []
        keep = in_this_thread(lambda module, args: read.append(args[0]))
        hook = self.multi_modal_projector.register_forward_pre_hook(keep)
        try:
            tower = next(self.vision_tower.parameters())
            self.get_image_features(pixel_values=pixel_values.to(tower.device, tower.dtype), return_dict=True)
        finally:
            hook.remove()
        return read[0]

    def _blank_image_features(self) -> torch.Tensor:
        """Return features of nothing in particular: keeps tower and projector in the graph of a text-only batch.

        [Contract] Distributed training hangs where one process uses a parameter and another does not.
        """
        # A tower that ZeRO-3 has cut up (`ds_id`) must run in all processes, also if it is frozen.
        used = (
            parameter.requires_grad or hasattr(parameter, "ds_id")
            for parameter in self.vision_tower.parameters()
        )
        if not any(used):
            linear = self.multi_modal_projector.linear_1
            return self.multi_modal_projector(linear.weight.new_zeros(1, linear.in_features))
        vision = self.config.tower
        side = min(vision.image_size, math.isqrt(self.config.image_seq_length) * vision.patch_size)
        pixels = torch.zeros(1, vision.num_channels, side, side, dtype=self.dtype, device=self.device)
        return torch.cat(list(self.get_image_features(pixel_values=pixels, return_dict=True).pooler_output))


def _count(layer: int | list[int]) -> int:
    return 1 if isinstance(layer, int) else len(layer)
