"""The blocks of one bridged context manager that are open: which of them does an exit leave?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OpenBlocks"]

T = TypeVar("T")


class OpenBlocks(Generic[T]):
    """Blocks, each with the task or thread that entered it.

    Others enter and leave the same manager at any moment. Each step here is one operation of a list, and nobody else
    takes what an owner has entered, but for an exit that has entered nothing itself.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[Any, T]] = []

    def __iter__(self) -> Iterator[T]:
        return iter([block for _, block in self._blocks.copy()])

    def add(self, owner: Any, block: T) -> None:
        self._blocks.append((owner, block))

    def take(self, owner: Any) -> T | None:
        """Return the block that *owner* has entered last, else the last one of all, else None; it is open no more."""
        block: T
        for entered in reversed(self._blocks.copy()):
            if entered[0] == owner:
                self._blocks.remove(entered)
                block = entered[1]
                return block
        try:
            _, block = self._blocks.pop()
        except IndexError:
            return None
        return block
