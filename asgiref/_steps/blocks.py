"""The open blocks of one bridged context manager, and which of them an exit leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OpenBlocks"]

T = TypeVar("T")


class OpenBlocks(Generic[T]):
    """Blocks, each with the task or thread that entered it.

    Other tasks and threads may enter and leave the same manager at any moment. Each step here is one operation of a
    list. A block is taken by its owner, or by an exit whose caller has entered nothing.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[Any, T]] = []

    def __iter__(self) -> Iterator[T]:
        return iter([block for _, block in self._blocks.copy()])

    def add(self, owner: Any, block: T) -> None:
        self._blocks.append((owner, block))

    def take(self, owner: Any) -> T | None:
        """Remove and return the block that *owner* has entered last, or else the last one of all, or None."""
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
