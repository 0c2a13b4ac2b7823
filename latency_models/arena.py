"""onnxruntime's arena: what it comes to for the requests that it gets.

Source: onnxruntime 1.31, ``core/framework/bfc_arena.cc``, with ``kSameAsRequested``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Arena", "rounded"]

# The arena hands out multiples of this (core/framework/bfc_arena.h, kMinAllocationSize).
_CHUNK = 256


@dataclass(slots=True, eq=False)
class _Chunk:
    region: int
    offset: int
    size: int
    owner: object = None


class Arena:
    """An arena that is extended by as much as is requested; ``total`` are its bytes.

    A request takes the smallest free chunk that is large enough, and of one of twice its size or
    more a part. Chunks that are free side by side become one, but never those of two extensions:
    that is why it can come to more than the peak.
    """

    def __init__(self) -> None:
        self.total = 0
        self.chunks: list[_Chunk] = []

    def take(self, owner: object, asked: int) -> None:
        """Give ``owner`` a chunk of at least ``asked`` bytes."""
        size = rounded(max(asked, 1), _CHUNK)
        free = [c for c in self.chunks if c.owner is None and c.size >= size]
        if free:
            chunk = min(free, key=lambda c: (c.size, c.region, c.offset))
            if chunk.size >= 2 * size:
                self.chunks.append(_Chunk(chunk.region, chunk.offset + size, chunk.size - size))
                chunk.size = size
        else:
            chunk = _Chunk(self.total, 0, size)  # the total tells the regions apart
            self.total += size
            self.chunks.append(chunk)
        chunk.owner = owner

    def give_back(self, owner: object) -> None:
        """Free the chunk of ``owner``."""
        chunk = next(c for c in self.chunks if c.owner == owner)
        chunk.owner = None
        for other in list(self.chunks):
            if other.owner is not None or other is chunk or other.region != chunk.region:
                continue
            if other.offset + other.size == chunk.offset:
                chunk.offset, chunk.size = other.offset, other.size + chunk.size
                self.chunks.remove(other)
            elif chunk.offset + chunk.size == other.offset:
                chunk.size += other.size
                self.chunks.remove(other)


def rounded(size: int, step: int) -> int:
    """``size``, or the next multiple of ``step``."""
    return -(-size // step) * step
