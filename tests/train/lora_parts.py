"""What tests of LoRA, QLoRA and frozen parts look at: weights, logits and losses of a run."""

import torch

from llavit import LlavitForConditionalGeneration
from llavit.model.adapters import is_adapter
from llavit.train.progress import read_step_log


def load(folder, **options):
    return LlavitForConditionalGeneration.from_pretrained(folder, **options).eval()


def logits(model, sample):
    with torch.no_grad():
        return model(**sample).logits


def losses(folder):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_step_log(folder / "train_log.jsonl")]


def own(model):
    """The model's weights by the names that they have without adapters."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if not is_adapter(name)
    }
