"""YAML read safely: YAML 1.2 scalars, one document, and the line and column of every value.

Refused: anchors, aliases, merge keys, tags, directives, duplicate keys, keys that are not text,
what JSON cannot say, and anything over 256 KiB or 64 levels. Only ruamel's parser is used; values
are built here, so no tag builds anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agentmesh.errors import BadYaml, MeshError
from agentmesh.records import Json

LIMIT_BYTES = 256 * 1024
LIMIT_DEPTH = 64
Path = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]+\Z")
_OCTAL = re.compile(r"0o[0-7]+\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_ODD_FLOAT = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
_WORDS: dict[str, Json] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class YamlText:
    """What a YAML text says, and where it says it."""

    data: Json
    source: str
    marks: dict[Path, tuple[int, int]]

    def where(self, *path: str | int) -> str:
        """`source:line:column` of the value at `path`, or of the nearest value above it."""
        line, column = self.place(*path)
        return f"{self.source}:{line}:{column}"

    def place(self, *path: str | int) -> tuple[int, int]:
        """Line and column of the value at `path`, or of the nearest value above it."""
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path, (1, 1))


def load(text: str | bytes, *, source: str, error: type[MeshError] = BadYaml) -> YamlText:
    """The data of one YAML document with its positions. Raises `error`, with file:line:column."""
    size = len(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    if size > LIMIT_BYTES:
        raise error(f"{source} is too large", value=f"{size} bytes", expected=f"at most {LIMIT_BYTES} bytes")
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        decoded.encode("utf-8")
    except UnicodeError:
        raise error(f"{source} is not UTF-8", expected="UTF-8 text") from None
    return _Reader(decoded, source, error).read()


class _Reader:
    """Builds plain data from parser events, and notes where each value began."""

    def __init__(self, text: str, source: str, error: type[MeshError]) -> None:
        self.source = source
        self.error = error
        self.marks: dict[Path, tuple[int, int]] = {}
        self.events = self._parse(text)

    def read(self) -> YamlText:
        import ruamel.yaml.events as ev  # noqa: PLC0415 - 0.1 s that only readers of YAML pay

        event = next(self.events)
        if not isinstance(event, ev.DocumentStartEvent):
            raise self.error(f"{self.source} is empty", expected="one YAML document")
        if event.version is not None or event.tags:
            raise self._refusal(event, "a directive", "YAML 1.2 without %YAML or %TAG lines")
        data = self._value(next(self.events), ())
        if not isinstance(next(self.events), ev.DocumentEndEvent) or not isinstance(
            after := next(self.events), ev.StreamEndEvent
        ):
            raise self._refusal(after, "a second document", "one document")
        return YamlText(data, self.source, self.marks)

    def _parse(self, text: str) -> Iterator[Any]:
        from ruamel.yaml import YAML  # noqa: PLC0415
        from ruamel.yaml.error import MarkedYAMLError, YAMLError  # noqa: PLC0415

        try:
            events = YAML(typ="safe", pure=True).parse(text)
            next(events)  # the start of the stream
            yield from events
        except MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            where = f"{self.source}:{mark.line + 1}:{mark.column + 1}" if mark else self.source
            raise self.error(f"{where} is not YAML: {exc.problem or exc.context}", expected="YAML 1.2") from None
        except (YAMLError, ValueError) as exc:
            line = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
            raise self.error(f"{self.source} is not YAML: {line}", expected="YAML 1.2") from None

    def _value(self, event: Any, path: Path) -> Json:
        import ruamel.yaml.events as ev  # noqa: PLC0415

        self.marks[path] = (event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, ev.AliasEvent):
            raise self._refusal(event, "an alias", "the value written out")
        if event.anchor is not None:
            raise self._refusal(event, "an anchor", "the value without &name")
        if event.tag is not None:
            raise self._refusal(event, f"the tag {event.tag}", "a plain value")
        if len(path) > LIMIT_DEPTH:
            raise self._refusal(event, "too deep a value", f"at most {LIMIT_DEPTH} levels")
        if isinstance(event, ev.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, ev.SequenceStartEvent):
            return self._sequence(path)
        return self._mapping(path)

    def _sequence(self, path: Path) -> list[Json]:
        import ruamel.yaml.events as ev  # noqa: PLC0415

        found: list[Json] = []
        while not isinstance(event := next(self.events), ev.SequenceEndEvent):
            found.append(self._value(event, (*path, len(found))))
        return found

    def _mapping(self, path: Path) -> dict[str, Json]:
        import ruamel.yaml.events as ev  # noqa: PLC0415

        found: dict[str, Json] = {}
        while not isinstance(event := next(self.events), ev.MappingEndEvent):
            key = self._value(event, (*path, ""))
            if not isinstance(key, str):
                raise self._refusal(event, f"the key {key!r}", "a key that is text (quote it)")
            if key == "<<" and event.style is None:
                raise self._refusal(event, "a merge key", "the keys written out")
            if key in found:
                raise self._refusal(event, f"the key {key!r} twice", "each key once")
            found[key] = self._value(next(self.events), (*path, key))
        return found

    def _scalar(self, event: Any) -> Json:
        text: str = event.value
        if event.style is not None:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _ODD_FLOAT.match(text):
            raise self._refusal(event, text, "a finite number, or text in quotes")
        number = _number(text)
        if number is None:
            return text
        if isinstance(number, int) and abs(number) >= 10**20:
            raise self._refusal(event, "too long a number", "at most 20 digits")
        if number in {float("inf"), float("-inf")}:
            raise self._refusal(event, text, "a finite number")
        return number

    def _refusal(self, event: Any, what: str, expected: str) -> MeshError:
        where = f"{self.source}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"
        return self.error(f"{where} has {what}", expected=expected)


def _number(text: str) -> int | float | None:
    """The number of a plain scalar by the core schema of YAML 1.2; None when it is text."""
    if len(text) > 400:
        return None
    for pattern, base in ((_INT, 10), (_OCTAL, 8), (_HEX, 16)):
        if pattern.match(text):
            return int(text[2:] if base != 10 else text, base)
    return float(text) if _FLOAT.match(text) else None
