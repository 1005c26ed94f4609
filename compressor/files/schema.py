"""Check plain values from a file: small checks that combine into bigger ones, and name the field that does not fit.

A form is a function of a value and its place in the file. A library of validated classes (pydantic, cattrs) would build
objects and convert values on the way. Here a single refusal is needed, in our own words, before our own constructors
see the value, and without a dependency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from compressor.errors import ArtifactError, CompressError

Form = Callable[[object, str], None]

MOST = 2**53  # larger integers are not counts, and are not exact as floats


class Misfit(Exception):
    """A value that does not fit: its place, the expected form, and the value."""

    def __init__(self, place: str, wanted: str, value: object) -> None:
        shown = repr(value) if not isinstance(value, (dict, list)) else f"a JSON {_kind(value)}"
        shown = shown if len(shown) < 60 else shown[:57] + "..."
        super().__init__(f"`{place}` is not {wanted}: {shown}")


class Missing(Misfit):
    """A required field that is missing."""

    def __init__(self, place: str) -> None:
        Exception.__init__(self, f"`{place}` is missing")


def check(
    value: object,
    form: Form,
    *,
    where: str,
    hint: str,
    refusal: type[CompressError] = ArtifactError,
) -> None:
    """Refuse a value that does not fit, naming the file (`where`) and the field."""
    try:
        form(value, "")
    except Misfit as error:
        raise refusal(f"{where}: {error}", hint=hint) from error


def _kind(value: object) -> str:
    return "object" if isinstance(value, dict) else "list"


def anything(value: object, place: str) -> None:
    """Accept any JSON value."""
    del value, place


def text(value: object, place: str) -> None:
    """Accept a string that every file and terminal can represent."""
    if not isinstance(value, str) or not _encodable(value):
        raise Misfit(place, "a text", value)


def path(value: object, place: str) -> None:
    """Accept a string that can be a path; its bytes that are not text are escaped as in Python."""
    if not isinstance(value, str) or "\0" in value or len(value) > 4096:
        raise Misfit(place, "a path", value)


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def flag(value: object, place: str) -> None:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise Misfit(place, "true or false", value)


def number(value: object, place: str) -> None:
    """Accept a finite number, integer or not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
        raise Misfit(place, "a finite number", value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def between(low: float, high: float, *, open_low: bool = False) -> Form:
    """Accept a number from `low` to `high`; with `open_low`, only above `low`."""
    wanted = f"a number {'above' if open_low else 'from'} {low:g}" + ("" if high == math.inf else f" to {high:g}")

    def form(value: object, place: str) -> None:
        number(value, place)
        assert isinstance(value, (int, float))
        if not (low < value <= high if open_low else low <= value <= high):
            raise Misfit(place, wanted, value)

    return form


def count(least: int = 0, most: int = MOST) -> Form:
    """Accept an integer from `least` to `most`."""
    wanted = f"a whole number from {least}" + ("" if most == MOST else f" to {most}")

    def form(value: object, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise Misfit(place, wanted, value)

    return form


def one_of(*values: object) -> Form:
    """Accept one of these values."""
    wanted = f"one of {', '.join(map(str, values))}"

    def form(value: object, place: str) -> None:
        if not any(type(value) is type(one) and value == one for one in values):
            raise Misfit(place, wanted, value)

    return form


def optional(inner: Form) -> Form:
    """Accept the form, or null."""

    def form(value: object, place: str) -> None:
        if value is not None:
            inner(value, place)

    return form


def either(wanted: str, *forms: Form) -> Form:
    """Accept a value that fits one of the forms; `wanted` describes them together."""

    def form(value: object, place: str) -> None:
        for one in forms:
            try:
                return one(value, place)
            except Misfit:
                continue
        raise Misfit(place, wanted, value)

    return form


def listed(inner: Form, *, least: int = 0, most: int | None = None) -> Form:
    """Accept a list of so many values of the form."""
    length = "" if not least and most is None else f" of {least}" if least == most else f" of at least {least}"

    def form(value: object, place: str) -> None:
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= (
            most if most is not None else len(value)
        ):
            raise Misfit(place, f"a list{length}", value)
        for index, one in enumerate(value):
            inner(one, f"{place}[{index}]")

    return form


def tuple_of(*forms: Form) -> Form:
    """Accept a list of exactly these forms."""

    def form(value: object, place: str) -> None:
        if not isinstance(value, (list, tuple)) or len(value) != len(forms):
            raise Misfit(place, f"a list of {len(forms)}", value)
        for index, (one, inner) in enumerate(zip(value, forms, strict=True)):
            inner(one, f"{place}[{index}]")

    return form


def table(inner: Form, *, key: Form = text) -> Form:
    """Accept an object with free keys, whose values all have one form."""

    def form(value: object, place: str) -> None:
        for name, one in _object(value, place).items():
            key(name, f"{place}.{str(name)[:40]}" if place else str(name)[:40])
            inner(one, _inside(place, name))

    return form


def record(fields: Mapping[str, Form], *, may: Mapping[str, Form] | None = None, others: bool = False) -> Form:
    """Accept an object with all of `fields`, some of `may`, and other fields only with `others`."""
    every = {**fields, **(may or {})}

    def form(value: object, place: str) -> None:
        by_name = _object(value, place)
        for name in fields:
            if name not in by_name:
                raise Missing(_inside(place, name))
        for name, one in by_name.items():
            if name in every:
                every[name](one, _inside(place, name))
            elif not others:
                raise Misfit(_inside(place, name), "a field that this version knows", one)

    return form


def also(form: Form, wanted: str, holds: Callable[[object], bool]) -> Form:
    """Accept the form if a further condition holds, for example between its fields."""

    def both(value: object, place: str) -> None:
        form(value, place)
        if not holds(value):
            raise Misfit(place, wanted, value)

    return both


def _object(value: object, place: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise Misfit(place or "it", "an object", value)
    return value


def _inside(place: str, name: str) -> str:
    shown = name if name.isprintable() and len(name) <= 60 else repr(name[:60])
    return f"{place}.{shown}" if place else shown


def lengths_agree(*names: str) -> Callable[[object], bool]:
    """Return a condition: these fields of an object are lists of equal length."""

    def agree(value: object) -> bool:
        assert isinstance(value, Mapping)
        lists: list[Sequence[object]] = [value[name] for name in names]
        return len({len(one) for one in lists}) == 1

    return agree
