"""Fits that tests share, each made when a test first needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class Fits(Mapping[str, Any]):
    """Fits by name; collecting the tests of a module makes none."""

    def __init__(self, **makers: Callable[[], Any]) -> None:
        self._makers, self._made = makers, dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
