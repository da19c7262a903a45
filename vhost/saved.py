"""State on its way from one process to another: plain data, and descriptors beside it.

Rule 1. What comes is untrusted. It is read through the functions here, which raise StateError.
Rule 2. In the data a descriptor is its index among those beside it, -1 for none, and no two are the same.
"""

from typing import Any

U64_MAX = (1 << 64) - 1


class StateError(Exception):
    """A state can't be saved, or a saved one is not what it should be. The text is one phrase."""


class Packed:
    """Descriptors that go beside the data. They stay their owner's."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def put(self, fd: int) -> int:
        """The index of a descriptor, -1 for none."""
        if fd < 0:
            return -1
        self.fds.append(fd)
        return len(self.fds) - 1


class Unpacked:
    """Descriptors that came, each to be taken once."""

    def __init__(self, fds: list[int]) -> None:
        self._fds: list[int | None] = [*fds]

    def take(self, data: Any, name: str) -> int:
        """The descriptor whose index is the field `name`, -1 for none."""
        index = number(data, name, -1, len(self._fds) - 1)
        if index < 0:
            return -1
        fd, self._fds[index] = self._fds[index], None
        if fd is None:
            raise StateError(f"{name}: a descriptor is named twice")
        return fd


def field(data: Any, name: str, kind: type) -> Any:
    """A field of exactly this type."""
    if not isinstance(data, dict) or type(data.get(name)) is not kind:
        raise StateError(f"{name} is missing, or no {kind.__name__}")
    return data[name]


def number(data: Any, name: str, low: int = 0, high: int = U64_MAX) -> int:
    value = int(field(data, name, int))
    if not low <= value <= high:
        raise StateError(f"{name} is {value}, not from {low} to {high}")
    return value


def numbers(data: Any, name: str, count: int) -> list[int]:
    """A list of so many numbers from 0 to 2^64 - 1."""
    values = items(data, name, count)
    if len(values) != count or not all(type(value) is int and 0 <= value <= U64_MAX for value in values):
        raise StateError(f"{name} does not consist of {count} numbers")
    return values


def items(data: Any, name: str, most: int) -> list[Any]:
    """A list of at most so many items."""
    values: list[Any] = field(data, name, list)
    if len(values) > most:
        raise StateError(f"{name} has {len(values)} items, more than {most}")
    return values


def rows(data: Any, name: str, most: int, width: int) -> list[list[int]]:
    """A list of at most so many rows, each of `width` numbers from 0 to 2^64 - 1."""
    return [numbers({name: row}, name, width) for row in items(data, name, most)]
