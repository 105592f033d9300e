"""From a record on disk to tensors: readers, conversations, datasets, collation."""
