"""What was computed once and may be asked about again: keys and values of the beginnings of conversations.

A conversation is a path in a tree of stretches. A stretch ends behind an image, before the last token of a prompt, or
where an answer ended, and never inside an image, whose tokens see each other:

    <system> ... <image>  ──┬── What is this? <assistant>  ── A cat. ...
                            └── Which colour is it? <assistant>  ── Grey. ...

The next question on the same image finds the first stretch, the next turn of the conversation all three. Stretches hold
the keys and values of their own tokens only. When room is needed, the stretch goes that was not used for longest and
that nothing else goes on from.

Tokens are known by identities: text by its id, a visual token by a digest of the image's pixels and its place in it.
Keys and values depend on nothing else (and, for a position, on all tokens before it: on the path).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(eq=False)
class Stretch:
    """Keys and values of the tokens from `start` to `end` of a conversation, behind those of its parent."""

    parent: Stretch | None
    start: int
    end: int
    name: int
    tokens: tuple[Hashable, ...]
    kv: torch.Tensor
    children: int = 0

    def path(self) -> list[Stretch]:
        """Return the stretches from the beginning of the conversation to this one."""
        stretch: Stretch | None = self
        path = []
        while stretch is not None:
            path.append(stretch)
            stretch = stretch.parent
        return path[::-1]


@dataclass
class TokenPath:
    """The tokens of a conversation by identity, and a name for each of its beginnings.

    Attributes:
        tokens: identities.
        names: of the beginning that ends behind each token.
    """

    tokens: list[Hashable] = field(default_factory=list)
    names: list[int] = field(default_factory=list)

    def extend(self, tokens: Sequence[Hashable]) -> None:
        """Add tokens at the end."""
        name = self.names[-1] if self.names else 0
        for token in tokens:
            name = hash((name, token))
            self.names.append(name)
        self.tokens.extend(tokens)


class ImageCache:
    """An LRU of stretches with a budget of bytes; used by one thread.

    Args:
        limit: bytes of keys and values; 0 keeps nothing.

    Attributes:
        bytes: in use.
        evictions: stretches dropped so far.

    Example:
        >>> cache, path = ImageCache(limit=1000), TokenPath()
        >>> path.extend([5, ("image", 0), ("image", 1), 7])
        >>> cache.put(path, 3, lambda start, end: torch.zeros(1, 2, 1, end - start, 4))
        >>> [stretch.end for stretch in cache.find(path, most=3)], cache.bytes
        ([3], 96)
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.bytes = self.evictions = 0
        self._stretches: dict[int, Stretch] = {}  # the one not used for longest first

    def __len__(self) -> int:
        return len(self._stretches)

    def find(self, path: TokenPath, most: int) -> list[Stretch]:
        """Return the stretches, in order, of the longest known beginning of at most `most` tokens."""
        if not self._stretches:
            return []
        for end in range(min(most, len(path.names)), 0, -1):
            stretch = self._stretches.get(path.names[end - 1])
            if stretch is None or stretch.end != end:
                continue
            stretches = stretch.path()
            if all(tuple(path.tokens[each.start : each.end]) == each.tokens for each in stretches):
                for each in stretches:  # used now: to the end of the order
                    self._stretches[each.name] = self._stretches.pop(each.name)
                return stretches
        return []

    def put(self, path: TokenPath, end: int, read: Callable[[int, int], torch.Tensor]) -> None:
        """Keep the first `end` tokens of a conversation.

        Args:
            path: the conversation.
            end: not inside an image.
            read: gives keys and values from a token to another, (layers, 2, heads, tokens, width); called for those
                only that are not there yet.
        """
        if not self.limit or not end:
            return
        known = self.find(path, end)
        parent = known[-1] if known else None
        start = parent.end if parent else 0
        if start == end or path.names[end - 1] in self._stretches:
            return
        kv = read(start, end)
        size = kv.numel() * kv.element_size()
        held = sum(each.kv.numel() * each.kv.element_size() for each in known)
        if held + size > self.limit:
            return
        name = path.names[end - 1]
        self._stretches[name] = Stretch(parent, start, end, name, tuple(path.tokens[start:end]), kv)
        if parent:
            parent.children += 1
        self.bytes += size
        self._make_room()

    def clear(self) -> None:
        """Forget everything."""
        self._stretches.clear()
        self.bytes = 0

    def _make_room(self) -> None:
        while self.bytes > self.limit:
            oldest = next(each for each in self._stretches.values() if not each.children)
            del self._stretches[oldest.name]
            if oldest.parent:
                oldest.parent.children -= 1
            self.bytes -= oldest.kv.numel() * oldest.kv.element_size()
            self.evictions += 1
