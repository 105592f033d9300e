import pytest
import torch

from llavit.data import Collator


@pytest.fixture
def sample(tiny):
    """A batch of one conversation with an image."""
    processor = tiny.build().processor
    image = {"type": "image", "image": str(tiny.data.parent / "0.png")}
    conversation = [
        {"role": "user", "content": [image, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "word word"},
    ]
    encoded = processor.encode(conversation, return_labels=True)
    batch = Collator(processor.tokenizer.pad_token_id)([encoded])
    return {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
