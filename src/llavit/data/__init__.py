"""From a record on disk to tensors: readers, conversations, datasets, collation."""

from llavit.data.collate import Collator
from llavit.data.conversation import Sample, from_record
from llavit.data.dataset import ConversationDataset, SkipLog, Skipped
from llavit.data.features import FeatureCache, cache_key
from llavit.data.mixture import Mixture, Source, open_mixture
from llavit.data.preview import Preview, preview_page, preview_records, preview_text
from llavit.data.readers import (
    ArrowReader,
    Format,
    JsonReader,
    Reader,
    TarReader,
    detect_format,
    open_reader,
)
from llavit.data.verify import Findings, Problem, verify_data
from llavit.data.verify_report import verify_table

__all__ = [
    "ArrowReader",
    "Collator",
    "ConversationDataset",
    "FeatureCache",
    "Findings",
    "Format",
    "JsonReader",
    "Mixture",
    "Preview",
    "Problem",
    "Reader",
    "Sample",
    "SkipLog",
    "Skipped",
    "Source",
    "TarReader",
    "cache_key",
    "detect_format",
    "from_record",
    "open_mixture",
    "open_reader",
    "preview_page",
    "preview_records",
    "preview_text",
    "verify_data",
    "verify_table",
]
