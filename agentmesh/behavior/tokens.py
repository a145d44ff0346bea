"""The words of an expression: numbers, texts, names and signs, each with its place.

What a text literal means is settled here, and written in one spelling by `quoted`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from agentmesh.errors import BadRule

_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t\r\n]+|//[^\n]*)+)
    |(?P<float>\d+\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\.\d+(?:[eE][+-]?\d+)?)
    |(?P<int>0x[0-9a-fA-F]+[uU]?|\d+[uU]?)
    |(?P<text>[rR]?(?:\"\"\"|'''|"|'))
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>\|\||&&|==|!=|<=|>=|[<>+\-*/%!?:.,()\[\]{}])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(
    r"""\\(?:([abfnrtv\\?"'`])|[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2}))"""
)
_SHORT = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    at: int


class Lexer:
    """Cuts `text` into tokens. Raises BadRule with line and column."""

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source

    def fail(self, expected: str, at: int, value: str, what: str = "cannot be read") -> NoReturn:
        """Raise BadRule for what stands at `at`."""
        raise BadRule(
            f"{self.source}: the expression {what} at {position(self.text, at)}",
            value=value or "the end",
            expected=expected,
        )

    def tokens(self) -> list[Token]:
        """All tokens, then one of kind "end"."""
        found: list[Token] = []
        at = 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                self.fail("a value, a name or an operator", at, self.text[at])
            kind, lexeme = str(match.lastgroup), match[0]
            if kind == "text":
                lexeme, end = self._quoted(lexeme, at)
            else:
                end = match.end()
            if kind in {"int", "float"} and re.match(r"[A-Za-z0-9_.]", self.text[end : end + 1]):
                self.fail("a number", at, self.text[at : end + 1])
            if kind != "space":
                found.append(Token(kind, lexeme, at))
            at = end
        return [*found, Token("end", "", at)]

    def _quoted(self, opening: str, at: int) -> tuple[str, int]:
        """The text a literal means, and where it ends."""
        raw = opening[0] in "rR"
        quote = opening[1:] if raw else opening
        start = at + len(opening)
        body = r".*?" if raw else r"(?:[^\\]|\\.)*?"
        found = re.compile(body + re.escape(quote), re.DOTALL).match(self.text, start)
        if found is None or (len(quote) == 1 and "\n" in found[0]):
            self.fail(f"a closing {quote}", at, self.text[at : at + 10])
        inner = self.text[start : found.end() - len(quote)]
        return (inner if raw else self._unescape(inner, start)), found.end()

    def _unescape(self, inner: str, start: int) -> str:
        out: list[str] = []
        at = 0
        while (slash := inner.find("\\", at)) >= 0:
            found = _ESCAPE.match(inner, slash)
            if found is None:
                self.fail(r"an escape such as \n", start + slash, inner[slash : slash + 2])
            short, *codes, octal = found.groups()
            code = next((int(c, 16) for c in codes if c), int(octal, 8) if octal else 0)
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                self.fail("a character", start + slash, found[0])
            out += [inner[at:slash], _SHORT.get(short, short) if short else chr(code)]
            at = found.end()
        return "".join([*out, inner[at:]])


def position(text: str, at: int) -> str:
    """line:column of a place in a text."""
    return f"{text.count(chr(10), 0, at) + 1}:{at - text.rfind(chr(10), 0, at)}"


def quoted(text: str) -> str:
    """`text` as a CEL literal that holds printable ASCII only."""
    return '"' + "".join(c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in text) + '"'
