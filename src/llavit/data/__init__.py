"""From a record on disk to tensors: readers, conversations, datasets, collation."""

from llavit.data.collate import Collator
from llavit.data.conversation import Sample, from_llava
from llavit.data.dataset import ConversationDataset, SkipLog, Skipped
from llavit.data.readers import LlavaReader, Reader, open_reader

__all__ = [
    "Collator",
    "ConversationDataset",
    "LlavaReader",
    "Reader",
    "Sample",
    "SkipLog",
    "Skipped",
    "from_llava",
    "open_reader",
]
