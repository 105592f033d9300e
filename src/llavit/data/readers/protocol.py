"""What the rest of llavit needs of a format."""

from __future__ import annotations

from typing import Protocol

from llavit.data.conversation import Sample


class Reader(Protocol):
    """Records by number. A reader can be pickled, and holds no record in memory but the one it read last."""

    fingerprint: str
    """Changes when the records change, and only then; the place on disk does not matter."""

    def __len__(self) -> int:
        """Give the number of records."""

    def name(self, index: int) -> str:
        """Name record `index` as a user would look for it; never fails."""

    def sample(self, index: int) -> Sample:
        """Read record `index`; a ValueError names it."""
