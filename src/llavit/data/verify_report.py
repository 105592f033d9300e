"""What `verify_data` found, as a table."""

from __future__ import annotations

import numpy as np
from rich.table import Table

from llavit.data.readers import Reader
from llavit.data.verify import Findings

_SHOWN = 5


def duplicates(found: Findings) -> list[np.ndarray]:
    """Group the records that share an id with another.

    Returns:
        for each such id the numbers of its records, in order; ids are compared by 64 bits of their hash.

    Example:
        >>> found = Findings(id_hashes=[np.array([[7, 0], [8, 1], [7, 2]])])
        >>> [group.tolist() for group in duplicates(found)]
        [[0, 2]]
    """
    pairs = np.concatenate(found.id_hashes) if found.id_hashes else np.zeros((0, 2), np.int64)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    groups = np.split(pairs[:, 1], np.flatnonzero(np.diff(pairs[:, 0])) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))


def verify_table(found: Findings, reader: Reader, max_length: int | None = None) -> Table:
    """Make a table of what was found, for `rich.print`.

    Args:
        found: of `verify_data`.
        reader: names the records that share an id.
        max_length: that was asked for.

    Example:
        rich.print(verify_table(verify_data(reader), reader))  # `llavit data verify` prints it
    """
    table = Table(show_header=False, box=None, padding=(0, 2))
    per_record = found.images_per_record
    table.add_row("records", f"{found.records:,}")
    table.add_row("bad", f"{found.bad:,}", style="bold red" if found.bad else "")
    table.add_row("text only", f"{per_record[0]:,}")
    several = {count: number for count, number in sorted(per_record.items()) if count > 1}
    most = f", at most {max(several)}" if several else ""
    table.add_row("several images", f"{sum(several.values()):,}{most}")

    sizes = np.concatenate(found.sizes) if found.sizes else np.zeros((0, 2), np.int32)
    table.add_row("images", f"{len(sizes):,}")
    if len(sizes):
        by_area = sizes[np.argsort(sizes.prod(axis=1, dtype=np.int64), kind="stable")]
        chosen = (by_area[0], by_area[len(by_area) // 2], by_area[-1])
        table.add_row(
            "  smallest, median, largest", ", ".join(f"{width} x {height}" for width, height in chosen)
        )
        modes = ", ".join(f"{mode} {number:,}" for mode, number in found.modes.most_common())
        table.add_row("  modes", modes)

    again = duplicates(found)
    examples = [" = ".join(reader.name(int(index)) for index in group[:2]) for group in again[:_SHOWN]]
    more = f" and {len(again) - _SHOWN:,} more" if len(again) > _SHOWN else ""
    table.add_row(
        "ids given more than once", f"{len(again):,}" + (f": {', '.join(examples)}{more}" if again else "")
    )

    for name, parts in (("tokens", found.tokens), ("supervised tokens", found.supervised)):
        counts = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        if len(counts):
            low, middle, high = int(counts.min()), float(np.median(counts)), int(counts.max())
            table.add_row(
                name,
                f"{low:,} least, {middle:,.0f} median, {high:,} most, {counts.sum(dtype=np.int64):,} in all",
            )
    if found.tokens and max_length is not None:
        table.add_row(f"longer than {max_length:,}", f"{found.over:,}")
        table.add_row("  nothing left of", f"{found.nothing_left:,}")
    return table
