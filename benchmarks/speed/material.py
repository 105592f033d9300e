"""What both sides work on: weights, pictures, the samples of each step, and models to ask."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Parts:
    """Where models are made from, and what the sides train on.

    Attributes:
        tower: folder of a vision tower.
        llm: folder of an LLM.
        layers: tower layers that LLaViT reads; LLaVA reads the last of them.
        image_sizes: pixels, one for each measured number of visual tokens.
        pretrain: LLaVA-format json with captioned images.
        instruct: LLaVA-format json with conversations about an image.
    """

    tower: str
    llm: str
    layers: tuple[int, ...]
    image_sizes: tuple[int, ...]
    pretrain: str
    instruct: str


@dataclass(frozen=True)
class Step:
    """What is in one training step."""

    samples: int
    text_tokens: int
    visual_tokens: int
    supervised_tokens: int
    attended: int
    """Pairs of tokens of which one sees the other, summed over the samples, as LLaViT's mask has them."""
    attended_causally: int
    """The same for LLaVA's mask."""


def starter_parts(folder: Path, samples: int, progress: Callable[[int, int], None] | None = None) -> Parts:
    """Take the starter weights and draw the starter corpus, as large as needed, into a folder.

    Args:
        folder: of the corpus.
        samples: pictures for each stage.
        progress: see `build_corpus`.
    """
    from llavit.starter.corpus import build_corpus
    from llavit.starter.weights import starter_llm, starter_tower

    corpus = build_corpus(folder, pretrain=samples, instruct=samples, val=0, test=0, progress=progress)
    return Parts(
        str(starter_tower()),
        str(starter_llm()),
        (4, 8, 11),
        (112, 224),
        str(corpus.pretrain),
        str(corpus.instruct),
    )


def build(parts: Parts, image_size: int, llava: bool) -> Any:
    """Build a model and its processor from the parts: LLaViT with all its changes, or LLaVA."""
    from llavit import build_llavit

    torch.manual_seed(0)
    return build_llavit(
        parts.tower,
        parts.llm,
        vision_feature_layer=parts.layers[-1] if llava else list(parts.layers),
        visual_qkv=not llava,
        bidirectional_visual_attention=not llava,
        image_size=image_size,
    )


def save_models(parts: Parts, image_size: int, folder: Path) -> dict[str, str]:
    """Save the models to be asked: LLaViT and LLaVA of ours, and transformers' own LLaVA, with the same weights.

    Returns:
        folders of "llavit", "llava_ours" and "llava". They are made again where the model's code has changed.
    """
    from llavit.convert import llava_processor
    from llavit.model.build import __file__ as code

    sources = sorted(Path(code).parent.glob("*.py"))
    text = json.dumps(asdict(parts)) + "".join(
        path.read_text(encoding="utf-8") for path in [*sources, Path(__file__)]
    )
    folder = folder / f"models-{image_size}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    folders = {name: str(folder / name) for name in ("llavit", "llava_ours", "llava")}
    if (folder / "complete").exists():
        return folders
    for old in folder.parent.glob(f"models-{image_size}-*"):
        shutil.rmtree(old)
    ours = build(parts, image_size, llava=False)
    ours.model.to(torch.bfloat16).save_pretrained(folders["llavit"])
    ours.processor.save_pretrained(folders["llavit"])
    del ours
    model, processor = build(parts, image_size, llava=True)
    model.to(torch.bfloat16).save_pretrained(folders["llava_ours"])
    processor.save_pretrained(folders["llava_ours"])
    as_transformers_llava(model).to(torch.bfloat16).save_pretrained(folders["llava"])
    llava_processor(processor).save_pretrained(folders["llava"])
    (folder / "complete").touch()
    return folders


def as_transformers_llava(model: Any) -> Any:
    """Give transformers' own LlavaForConditionalGeneration with the weights of a LLaVA of ours."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = model.config
    theirs = LlavaConfig(
        vision_config=config.vision_config.to_dict(),
        text_config=config.text_config.to_dict(),
        image_token_index=config.image_token_index,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_seq_length=config.image_seq_length,
        tie_word_embeddings=config.text_config.tie_word_embeddings,
    )
    llava = LlavaForConditionalGeneration(theirs)
    llava.load_state_dict(model.state_dict())
    llava.tie_weights()
    llava.generation_config = model.generation_config
    return llava


class Batches:
    """The samples of a stage, tokenised, in the order of the steps.

    Steps hold samples of like length: the order is that of transformers' `group_by_length`, the longest step first, and
    all sides take it. So padding costs the padding side little.

    Args:
        parts: the data.
        processor: a LlavitProcessor.
        stage: "pretrain" or "instruct".
        batch: samples of a step.

    Attributes:
        samples: of each record: input_ids, labels, image_ids and the image's path.
        order: number of the record, step after step.
    """

    def __init__(self, parts: Parts, processor: Any, stage: str, batch: int):
        from transformers.trainer_pt_utils import get_length_grouped_indices

        from llavit.data.readers import open_reader

        self.path = parts.pretrain if stage == "pretrain" else parts.instruct
        self.batch = batch
        reader = open_reader(self.path)
        self.samples: list[dict[str, Any]] = []
        for index in range(len(reader)):
            sample = reader.sample(index)
            encoded = processor.encode(sample.messages, return_labels=True, name=sample.id)
            encoded.pop("pixel_values", None)
            self.samples.append({**encoded, "images": [str(image) for image in sample.images]})
        lengths = [len(sample["input_ids"]) for sample in self.samples]
        generator = torch.Generator().manual_seed(0)
        order = get_length_grouped_indices(lengths, batch, generator=generator)
        self.order = order[: len(order) - len(order) % batch]

    def save(self, path: Path) -> None:
        """Write samples and order for a side that has no reader of its own."""
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"samples": self.samples, "order": self.order}, path)

    def step(self, number: int) -> Step:
        """Count what is in a step; after the last one the first comes again."""
        start = number * self.batch % len(self.order)
        samples = [self.samples[index] for index in self.order[start : start + self.batch]]
        text = visual = supervised = attended = causal = 0
        for sample in samples:
            length = len(sample["input_ids"])
            ids = sample["image_ids"]
            images = ids[ids >= 0].bincount().tolist()
            text += length - sum(images)
            visual += sum(images)
            supervised += int((sample["labels"][1:] != -100).sum())
            causal += length * (length + 1) // 2
            attended += length * (length + 1) // 2 + sum(count * (count - 1) // 2 for count in images)
        return Step(len(samples), text, visual, supervised, attended, causal)


def useful_flops(config: Any, rates: dict[str, float], step: Step) -> float:
    """Count the floating point operations that a training step needs: nothing that a way of computing it adds.

    Logits at labels only; attention between tokens that see each other (and not the whole square); no tower, whose
    features are in the cache; no padding. Products of matrices count, as `llavit.train.flops` has them.

    Args:
        config: of the model.
        rates: learning rate of each part.
        step: what is in it.
    """
    from llavit.train.flops import training_flops

    counts = (step.text_tokens, step.visual_tokens, step.supervised_tokens)
    pairs = step.attended if config.bidirectional_visual_attention else step.attended_causally
    return training_flops(config, rates, *counts, images=0, token_pairs=pairs)
