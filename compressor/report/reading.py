"""Entries of a JSON file, read by key and kind; an entry of the wrong kind is refused by its place in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compressor.errors import ArtifactError


class Entry:
    """One object of the file. Each reader gives `None` (or nothing) where the key is absent or null."""

    def __init__(self, value: object, *, place: str) -> None:
        if not isinstance(value, Mapping):
            raise _refusal(place, "an object", value)
        self._values: Mapping[str, object] = value
        self._read: set[str] = set()
        self._place = place

    def value(self, key: str) -> object:
        """Whatever stands there."""
        self._read.add(key)
        return self._values.get(key)

    def number(self, key: str) -> float | None:
        """A number, whole or not."""
        value = self.value(key)
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return value
        raise _refusal(f"{self._place}.{key}", "a number", value)

    def count(self, key: str) -> int | None:
        """A whole number."""
        value = self.number(key)
        if value is None or isinstance(value, int):
            return value
        raise _refusal(f"{self._place}.{key}", "a whole number", value)

    def text(self, key: str) -> str | None:
        """A string."""
        value = self.value(key)
        if value is None or isinstance(value, str):
            return value
        raise _refusal(f"{self._place}.{key}", "a string", value)

    def pair(self, key: str) -> tuple[int, int] | None:
        """Two whole numbers: of the dense network and of the small one."""
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, int) for v in value):
            return int(value[0]), int(value[1])
        raise _refusal(f"{self._place}.{key}", "a pair of whole numbers", value)

    def list(self, key: str) -> Sequence[object]:
        """A list, empty where it is absent."""
        value = self.value(key)
        if value is None:
            return ()
        if isinstance(value, Sequence) and not isinstance(value, str):
            return value
        raise _refusal(f"{self._place}.{key}", "a list", value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        found = self.list(key)
        for value in found:
            if not isinstance(value, str):
                raise _refusal(f"{self._place}.{key}", "a list of strings", value)
        return tuple(str(value) for value in found)

    def rows(self, key: str) -> tuple[tuple[int, ...], ...]:
        """Lists of whole numbers."""
        found = self.list(key)
        for row in found:
            if not isinstance(row, list) or any(type(v) is not int for v in row):
                raise _refusal(f"{self._place}.{key}", "lists of whole numbers", row)
        return tuple(tuple(row) for row in found if isinstance(row, list))

    def entry(self, key: str) -> Entry | None:
        """An object."""
        value = self.value(key)
        return None if value is None else Entry(value, place=f"{self._place}.{key}")

    def entries(self, key: str) -> tuple[Entry, ...]:
        """A list of objects, or the only one."""
        value = self.value(key)
        if isinstance(value, Mapping):
            return (Entry(value, place=f"{self._place}.{key}"),)
        return tuple(Entry(v, place=f"{self._place}.{key}[{i}]") for i, v in enumerate(self.list(key)))

    def facts(self) -> tuple[tuple[str, object], ...]:
        """All keys and values."""
        return tuple(self._values.items())

    def rest(self) -> tuple[tuple[str, object], ...]:
        """The keys that nobody has read: a newer writer's figures are shown, not dropped."""
        return tuple((key, value) for key, value in self._values.items() if key not in self._read)


def _refusal(place: str, wanted: str, value: object) -> ArtifactError:
    shown = repr(value)
    return ArtifactError(
        f"`{place}` in the results is not {wanted}: {shown if len(shown) < 60 else shown[:57] + '...'}",
        hint="the file was edited, or another version wrote it; run the command that measures it again",
    )
