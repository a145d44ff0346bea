"""What is known of a value before there is one: which types it can have, and which fields.

A shape is read from a JSON Schema as far as that says so: what it rules out is ruled out, everything else may be. A
schema that lists the properties of an object means that there are no others, unless `additionalProperties` says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

from agentmesh.records import Json

WORDS = {
    "null": "null", "bool": "true or false", "number": "a number", "text": "text", "list": "a list", "object": "an object",
    "time": "a time", "duration": "a duration",
}  # fmt: skip
"""Every type, as errors name it. Whole numbers and others are one: they may be compared."""

_TYPES = {
    "null": "null", "boolean": "bool", "integer": "number", "number": "number", "string": "text", "array": "list",
    "object": "object",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """`types` None: it can be anything. `fields` are those of an object, which has more where it is `open`; `items`
    what a list holds; `texts` all that a text can be (None: whatever)."""

    types: frozenset[str] | None = None
    fields: Mapping[str, Shape] = field(default_factory=dict)
    open: bool = True
    items: Shape | None = None
    texts: frozenset[str] | None = None

    def can_be(self, *types: str) -> bool:
        return self.types is None or bool(self.types & set(types))

    def matches(self, other: Shape) -> bool:
        """Whether there is a value that both can be."""
        if self.types is None or other.types is None:
            return True
        both = self.types & other.types
        if both == {"text"} and self.texts is not None and other.texts is not None:
            return bool(self.texts & other.texts)
        return bool(both)

    def __str__(self) -> str:
        return " or ".join(WORDS[one] for one in sorted(self.types)) if self.types else "anything"


ANYTHING = Shape()


def one_of(*types: str) -> Shape:
    """A value of one of these types, of which no more is known."""
    return Shape(frozenset(types))


NULL, BOOL, NUMBER, TEXT = one_of("null"), one_of("bool"), one_of("number"), one_of("text")


def object_of(fields: Mapping[str, Shape], *, open: bool = False) -> Shape:  # noqa: A002 - the field's name
    return Shape(frozenset({"object"}), fields, open)


def list_of(items: Shape) -> Shape:
    return Shape(frozenset({"list"}), items=items)


def text_of(texts: Collection[str]) -> Shape:
    return replace(TEXT, texts=frozenset(texts))


def union(shapes: Iterable[Shape]) -> Shape:
    """What is one of these. There is at least one."""
    return reduce(_either, shapes)


def _either(a: Shape, b: Shape) -> Shape:
    if a == b:
        return a
    if a.types is None or b.types is None:
        return ANYTHING
    objects = [one for one in (a, b) if one.can_be("object")]
    names = {name for one in objects for name in one.fields}
    fields = {name: union([one.fields[name] for one in objects if name in one.fields]) for name in names}
    lists = [one.items for one in (a, b) if one.can_be("list")]
    items = union([one for one in lists if one is not None]) if lists and None not in lists else None
    said = [one.texts for one in (a, b) if one.can_be("text")]
    texts = frozenset[str]().union(*[one for one in said if one is not None]) if said and None not in said else None
    return Shape(a.types | b.types, fields, not objects or any(one.open for one in objects), items, texts)


def of_value(value: Json) -> Shape:
    """Of a value that is there already."""
    match value:
        case None:
            return NULL
        case bool():
            return BOOL
        case int() | float():
            return NUMBER
        case str():
            return text_of([value])
        case Mapping():
            return object_of({key: of_value(one) for key, one in value.items()})
        case _:
            return list_of(union(map(of_value, value)) if value else ANYTHING)


def of_schema(schema: Json) -> Shape:
    """Of what a JSON Schema allows; ANYTHING where it is none."""
    return _Reader(schema).read(schema)


MAX_PARTS = 10_000


class _Reader:
    """Reads one schema. A definition within itself is anything, and so is what comes after MAX_PARTS of it."""

    def __init__(self, root: Json) -> None:
        self._root = root
        self._open: list[str] = []
        self._parts = 0

    def read(self, schema: Json) -> Shape:  # noqa: PLR0911 - one a keyword
        self._parts += 1
        if not isinstance(schema, Mapping) or self._parts > MAX_PARTS:
            return ANYTHING
        if "$ref" in schema:
            return self._named(schema["$ref"])
        if "const" in schema:
            return of_value(schema["const"])
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return union(map(of_value, schema["enum"]))
        for either in ("anyOf", "oneOf"):
            if isinstance(schema.get(either), list) and schema[either]:
                return union(map(self.read, schema[either]))
        if isinstance(schema.get("allOf"), list):
            return self.read(schema["allOf"][0]) if len(schema["allOf"]) == 1 else ANYTHING
        return self._typed(schema)

    def _typed(self, schema: Mapping[str, Json]) -> Shape:
        said = schema.get("type", "object" if "properties" in schema else None)
        names = said if isinstance(said, list) else [said]
        if not names or not all(isinstance(one, str) and one in _TYPES for one in names):
            return ANYTHING
        listed = schema.get("properties")
        fields = {name: self.read(one) for name, one in listed.items()} if isinstance(listed, Mapping) else {}
        more = schema.get("additionalProperties", not fields)
        return Shape(
            frozenset(_TYPES[one] for one in names), fields, more is not False or "patternProperties" in schema,
            self.read(schema["items"]) if "items" in schema and "prefixItems" not in schema else None,
        )  # fmt: skip

    def _named(self, ref: Json) -> Shape:
        name = str(ref)
        if name in self._open or not name.startswith("#/"):
            return ANYTHING
        found = self._root
        for part in name.removeprefix("#/").split("/"):
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        self._open.append(name)
        made = self.read(found)
        self._open.pop()
        return made
