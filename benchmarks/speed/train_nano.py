"""A side that trains nanoVLM's model with the steps of nanoVLM's own loop, from a checkout that the user has.

The model has the shape of the others: SmolLM2's weights, a ViT of the tower's size (its weights are random, it is
frozen), a visual token per patch. The step is that of its train.py: bf16 autocast, forward, backward, clipping, AdamW.
Its image pipeline needs torchvision, which nothing here has, so pictures come from the side's own PIL image processor.
Samples and order are those of all sides; rows are padded on the left, as its collator does.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.speed.channel import Channel
from benchmarks.speed.limits import device
from benchmarks.speed.material import Parts, build
from benchmarks.speed.pace import peak_bytes, reset_peak, resident_bytes, synchronise
from llavit.model.images import load_image
from llavit.precision import resolve_dtype


def side(spec: dict[str, Any], channel: Channel) -> None:
    """Train until told to stop.

    Args:
        spec: checkout (folder of nanoVLM), tower, llm, layers, image_size, stage ("instruct"; nanoVLM has one stage),
            batch, samples (file of `Batches.save`).
        channel: to the harness.

    Raises:
        ValueError: the checkout is not one.
    """
    before = resident_bytes()
    dtype = resolve_dtype("auto")[0]
    parts = Parts(spec["tower"], spec["llm"], tuple(spec["layers"]), (), "", "")
    ours, processor = build(parts, spec["image_size"], llava=True)
    model = _model(Path(spec["checkout"]), ours, processor, spec["image_size"])
    del ours
    saved = torch.load(spec["samples"])
    samples, order = saved["samples"], saved["order"]
    for parameter in model.vision_encoder.parameters():
        parameter.requires_grad = False
    groups: list[dict[str, Any]] = [
        {"params": list(model.MP.parameters()), "lr": 5e-3},
        {"params": list(model.decoder.parameters()), "lr": 5e-5},
    ]
    optimizer = torch.optim.AdamW(groups)
    trained = [parameter for group in groups for parameter in group["params"]]
    model.to(device()).train()
    revision = Path(spec["checkout"]) / "REVISION"
    channel.ready(
        resident_before=before,
        dtype=str(dtype),
        revision=revision.read_text().strip() if revision.exists() else None,
        trains=sum(parameter.numel() for parameter in trained),
    )
    done = 0
    for command in channel.commands():
        synchronise()
        reset_peak()
        began = time.perf_counter()
        for number in range(done, done + command["count"]):
            start = number * spec["batch"] % len(order)
            rows = [samples[index] for index in order[start : start + spec["batch"]]]
            batch, images = _batch(rows, processor)
            with torch.autocast(device().type, dtype, enabled=dtype is not torch.float32):
                _, loss = model(
                    batch["input_ids"],
                    images,
                    attention_mask=batch["attention_mask"],
                    targets=batch["labels"],
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        synchronise()
        seconds = time.perf_counter() - began
        channel.send(seconds=seconds, steps=command["count"], first_step=done, peak_bytes=peak_bytes())
        done += command["count"]


def _batch(rows: list[dict[str, Any]], processor: Any) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Pad on the left; labels are those of the next token, as nanoVLM's loss expects."""

    def padded(columns: list[torch.Tensor], value: int) -> torch.Tensor:
        joined = torch.nn.utils.rnn.pad_sequence(
            columns, batch_first=True, padding_value=value, padding_side="left"
        )
        return joined.to(device())

    ids = [row["input_ids"] for row in rows]
    batch = {
        "input_ids": padded(ids, processor.tokenizer.pad_token_id),
        "attention_mask": padded([torch.ones_like(row) for row in ids], 0),
        "labels": padded(
            [torch.nn.functional.pad(row["labels"][1:], (0, 1), value=-100) for row in rows], -100
        ),
    }
    pictures = [load_image(image, "sample") for row in rows for image in row["images"]]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return batch, list(pixels.split(1))


def _model(checkout: Path, llava: Any, processor: Any, image_size: int) -> Any:
    """Make nanoVLM's model in the shape of a LLaVA of ours, with the weights of its LLM."""
    if not (checkout / "models" / "vision_language_model.py").is_file():
        raise ValueError(
            f"NANOVLM={checkout}: expected a checkout of nanoVLM with models/vision_language_model.py"
        )
    sys.path.insert(0, str(checkout))

    class Words:
        """What the model asks of its tokenizer."""

        image_token_id = llava.config.image_token_id
        eos_token_id = processor.tokenizer.eos_token_id

    pipeline: Any = ModuleType("data.processors")  # the real one imports torchvision
    pipeline.get_tokenizer = lambda *args: Words
    sys.modules["data.processors"] = pipeline
    from models.config import VLMConfig  # type: ignore[import-not-found]
    from models.vision_language_model import VisionLanguageModel  # type: ignore[import-not-found]

    tower, llm = llava.config.vision_config, llava.config.text_config
    config = VLMConfig(
        vit_hidden_dim=tower.hidden_size,
        vit_inter_dim=getattr(tower, "intermediate_size", None) or tower.hidden_size * int(tower.mlp_ratio),
        vit_patch_size=tower.patch_size,
        vit_img_size=image_size,
        vit_n_heads=tower.num_attention_heads,
        vit_n_blocks=tower.num_hidden_layers,
        lm_hidden_dim=llm.hidden_size,
        lm_inter_dim=llm.intermediate_size,
        lm_rms_eps=llm.rms_norm_eps,
        lm_re_base=llm.rope_parameters["rope_theta"],
        lm_max_position_embeddings=llm.max_position_embeddings,
        lm_vocab_size=llm.vocab_size,
        lm_n_heads=llm.num_attention_heads,
        lm_n_kv_heads=llm.num_key_value_heads,
        lm_n_blocks=llm.num_hidden_layers,
        mp_pixel_shuffle_factor=1,
        mp_image_token_length=(image_size // tower.patch_size) ** 2,
    )
    model = VisionLanguageModel(config, load_backbone=False)
    model.decoder.load_state_dict(
        {_their_name(name): tensor for name, tensor in _llm_weights(llava)}, strict=False
    )
    return model


def _llm_weights(llava: Any) -> list[tuple[str, torch.Tensor]]:
    return list(llava.get_decoder().state_dict().items())


def _their_name(name: str) -> str:
    """Translate a weight's name in a Llama to that in nanoVLM's language model."""
    for ours, theirs in (
        ("layers.", "blocks."),
        ("self_attn.o_proj", "attn.out_proj"),
        ("self_attn.", "attn."),
        ("input_layernorm", "norm1"),
        ("post_attention_layernorm", "norm2"),
        ("embed_tokens", "token_embedding"),
    ):
        name = name.replace(ours, theirs)
    return name
