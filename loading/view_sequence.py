"""Views as a sequence that holds no Python object for each of them."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Protocol, TypeVar, overload

Item = TypeVar("Item", covariant=True)


class Block(Protocol[Item]):
    """Some views of a building: what `Views` is made of."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Item: ...
    def __contains__(self, view: object) -> bool: ...
    def part(self, start: int, stop: int) -> "Block[Item]": ...
    def keys(self) -> str: ...


class Views(Sequence[Item]):
    """Views as a sequence, each made when it is asked for.

    It has no Python object for each view. So the memory that it shares with forked processes
    stays shared.
    """

    def __init__(self, blocks: Sequence[Block[Item]]) -> None:
        self._blocks = [block for block in blocks if len(block)]
        self._ends = list(accumulate(map(len, self._blocks)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        """Return a view or, for a slice of step 1, another sequence of this kind."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [self[i] for i in range(start, stop, step)]
            starts = [0, *self._ends]
            return Views([
                block.part(max(0, start - first), min(len(block), max(0, stop - first)))
                for first, block in zip(starts, self._blocks, strict=False)
                if start < first + len(block) and first < stop
            ])  # fmt: skip
        number = range(len(self))[index]
        place = bisect_right(self._ends, number)
        return self._blocks[place][number - (self._ends[place - 1] if place else 0)]

    def __iter__(self) -> Iterator[Item]:
        for block in self._blocks:
            for number in range(len(block)):
                yield block[number]

    def __contains__(self, view: object) -> bool:
        return any(view in block for block in self._blocks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def firsts(self) -> list[Item]:
        """Return the first view of each block, for what all views of a building have in common."""
        return [block[0] for block in self._blocks]

    def keys(self) -> Iterator[str]:
        """Yield (part, building, name) of all views as text, a building at a time.

        That takes less time than making the views.
        """
        return (block.keys() for block in self._blocks)
