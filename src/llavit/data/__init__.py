"""From a record on disk to tensors: readers, conversations, datasets, collation."""

from llavit.data.collate import Collator
from llavit.data.conversation import Sample, from_record
from llavit.data.dataset import ConversationDataset, SkipLog, Skipped
from llavit.data.mixture import Mixture, Source, open_mixture
from llavit.data.readers import (
    ArrowReader,
    Format,
    JsonReader,
    Reader,
    TarReader,
    detect_format,
    open_reader,
)

__all__ = [
    "ArrowReader",
    "Collator",
    "ConversationDataset",
    "Format",
    "JsonReader",
    "Mixture",
    "Reader",
    "Sample",
    "SkipLog",
    "Skipped",
    "Source",
    "TarReader",
    "detect_format",
    "from_record",
    "open_mixture",
    "open_reader",
]
