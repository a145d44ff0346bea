"""The text of an expression as a tree: the part of CEL that rules may use, and nothing beyond it.

A tree is at most 32 deep, has one level of macros and calls only listed functions. `spell` writes a
tree out again fully bracketed: the evaluator is given that, so it cannot read a text otherwise.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from agentmesh.behavior.tokens import Lexer, Token, quoted
from agentmesh.errors import BadRule

LIMIT_BYTES = 2048
LIMIT_DEPTH = 32
LIMIT_LITERAL_ITEMS = 1000
LIMIT_PATTERN = 200

MACROS = {"all": (2,), "exists": (2,), "exists_one": (2,), "map": (2, 3), "filter": (2,)}
FUNCTIONS = {
    "size": 1, "contains": 2, "startsWith": 2, "endsWith": 2, "matches": 2, "int": 1, "uint": 1,
    "double": 1, "string": 1, "timestamp": 1, "duration": 1,
}  # fmt: skip
METHODS = frozenset({"contains", "startsWith", "endsWith", "matches"})
RESERVED = frozenset({
    "as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in",
    "let", "loop", "namespace", "null", "package", "return", "true", "var", "void", "while",
})  # fmt: skip
LEVELS = (("||",), ("&&",), ("==", "!=", "<=", ">=", "<", ">", "in"), ("+", "-"), ("*", "/", "%"))


@dataclass(frozen=True, slots=True)
class Node:
    """One node: `kind` says what `name`, `value` and `kids` mean; `at` is where it begins."""

    kind: str
    at: int
    name: str = ""
    value: object = None
    kids: tuple[Node, ...] = ()
    depth: int = 1


def parse(text: str, *, source: str, variables: Iterable[str] | None = None) -> Node:
    """The tree of `text`. Raises BadRule, with line and column inside the expression.

    `variables` are the names an expression may begin with; None allows every name.
    """
    if len(text.encode("utf-8", "surrogatepass")) > LIMIT_BYTES:
        raise BadRule(f"{source}: the expression is too long", value=f"{len(text)} characters")
    return _Parser(text, source, None if variables is None else tuple(variables)).whole()


class _Parser:
    def __init__(self, text: str, source: str, variables: tuple[str, ...] | None) -> None:
        self.lexer = Lexer(text, source)
        self.variables = variables
        self.open = 0
        self.bound: list[str] = []
        self.tokens = self.lexer.tokens()
        self.next = 0

    def whole(self) -> Node:
        node = self.expression()
        if self.token.kind != "end":
            self.fail("an operator or the end", self.token)
        return node

    # --- tokens

    @property
    def token(self) -> Token:
        return self.tokens[self.next]

    def fail(self, expected: str, place: Token | Node, what: str = "cannot be read") -> NoReturn:
        seen = place.text if isinstance(place, Token) else place.name or place.kind
        self.lexer.fail(expected, place.at, seen, what)

    def take(self, text: str) -> Token | None:
        token = self.token
        if token.kind in {"sign", "name"} and token.text == text:
            self.next += 1
            return token
        return None

    def need(self, text: str) -> Token:
        return self.take(text) or self.fail(f"{text!r}", self.token)

    def node(self, kind: str, at: int, *kids: Node, name: str = "", value: object = None) -> Node:
        made = Node(kind, at, name, value, kids, 1 + max((kid.depth for kid in kids), default=0))
        if made.depth > LIMIT_DEPTH:
            self.fail(f"at most {LIMIT_DEPTH} levels", made, "is too deep")
        return made

    # --- grammar, from the loosest binding to the tightest

    def expression(self) -> Node:
        self.open += 1
        if self.open > LIMIT_DEPTH:
            self.fail(f"at most {LIMIT_DEPTH} levels", self.token, "is too deep")
        node = self.chain(0)
        if mark := self.take("?"):
            yes = self.chain(0)
            self.need(":")
            node = self.node("cond", mark.at, node, yes, self.expression())
        self.open -= 1
        return node

    def chain(self, level: int) -> Node:
        if level == len(LEVELS):
            return self.unary()
        kids = [self.chain(level + 1)]
        signs: list[str] = []
        while sign := next((s for s in LEVELS[level] if self.take(s)), None):
            signs.append(sign)
            kids.append(self.chain(level + 1))
        if not signs:
            return kids[0]
        return self.node("chain", kids[0].at, *kids, value=tuple(signs))

    def unary(self) -> Node:
        """Any number of one sign; CEL does not mix ! and - without brackets."""
        signs: list[Token] = []
        while sign := self.take(signs[0].text) if signs else self.take("!") or self.take("-"):
            signs.append(sign)
            if len(signs) > LIMIT_DEPTH:
                self.fail(f"at most {LIMIT_DEPTH} levels", sign, "is too deep")
        node = self.member()
        for sign in reversed(signs):
            node = self.node("unary", sign.at, node, name=sign.text)
        return node

    def member(self) -> Node:
        node = self.primary()
        while True:
            if dot := self.take("."):
                name = self.token
                if name.kind != "name" or name.text in RESERVED:
                    self.fail("a field name", name)
                self.next += 1
                if not self.take("("):
                    node = self.node("select", dot.at, node, name=name.text)
                elif name.text in MACROS:
                    node = self.macro(node, name)
                else:
                    node = self.call(name, [node, *self.listed(")")])
            elif mark := self.take("["):
                node = self.node("index", mark.at, node, self.expression())
                self.need("]")
            else:
                return node

    def primary(self) -> Node:
        token = self.token
        self.next += 1
        if token.kind in {"int", "float"}:
            return self.node("number", token.at, name=token.text)
        if token.kind == "text":
            return self.node("text", token.at, value=token.text)
        if token.kind == "name":
            return self.named(token)
        return self.bracket(token)

    def bracket(self, opening: Token) -> Node:
        match opening.text:
            case "(":
                node = self.expression()
                self.need(")")
                return node
            case "[":
                return self.node("list", opening.at, *self.listed("]"))
            case "{":
                return self.entries(opening)
            case _:
                return self.fail("a value, a name or a bracket", opening)

    def named(self, token: Token) -> Node:
        if token.text in {"true", "false", "null"}:
            return self.node("word", token.at, name=token.text)
        if token.text in RESERVED:
            self.fail("a name that is not reserved", token)
        if self.take("("):
            arguments = self.listed(")")
            if token.text == "has":
                if len(arguments) != 1 or arguments[0].kind != "select":
                    self.fail("has(a.field)", token)
                return self.node("has", token.at, *arguments)
            return self.call(token, arguments)
        if token.text not in self.bound and self.variables is not None and token.text not in self.variables:
            self.fail(nearest(token.text, self.variables), token, "names something unknown")
        return self.node("name", token.at, name=token.text)

    def call(self, name: Token, arguments: list[Node]) -> Node:
        wanted = FUNCTIONS.get(name.text)
        if wanted is None:
            self.fail(nearest(name.text, [*FUNCTIONS, "has", *MACROS]), name, "calls something unknown")
        if len(arguments) != wanted:
            self.fail(f"{wanted} value(s) for {name.text}", name)
        if name.text == "matches":
            pattern = arguments[1]
            # A counted repetition took 64 ms to compile; a computed pattern is compiled each turn.
            simple = isinstance(pattern.value, str) and pattern.kind == "text" and "{" not in pattern.value
            if not simple or len(str(pattern.value)) > LIMIT_PATTERN:
                self.fail(f"a pattern in quotes, at most {LIMIT_PATTERN} characters, without {{", pattern)
        return self.node("call", name.at, *arguments, name=name.text)

    def macro(self, over: Node, name: Token) -> Node:
        if self.bound:
            self.fail("one macro level: this stands inside another macro", name, "nests macros")
        variable = self.token
        if variable.kind != "name" or variable.text in RESERVED:
            self.fail(f"{name.text}(item, expression)", variable)
        if self.variables is not None and variable.text in self.variables:
            self.fail("a name that is not a variable already", variable)
        self.next += 1
        self.need(",")
        self.bound.append(variable.text)
        body = self.listed(")")
        self.bound.pop()
        if len(body) + 1 not in MACROS[name.text]:
            self.fail(f"{name.text}(item, expression)", name)
        return self.node("macro", name.at, over, *body, name=name.text, value=variable.text)

    def listed(self, closing: str) -> list[Node]:
        found: list[Node] = []
        while not self.take(closing):
            found.append(self.expression())
            if len(found) > LIMIT_LITERAL_ITEMS:
                self.fail(f"at most {LIMIT_LITERAL_ITEMS} items", self.token)
            if not self.take(","):
                self.need(closing)
                break
        return found

    def entries(self, opening: Token) -> Node:
        found: list[Node] = []
        while not self.take("}"):
            found.append(self.expression())
            self.need(":")
            found.append(self.expression())
            if not self.take(","):
                self.need("}")
                break
        return self.node("map", opening.at, *found)


def nearest(word: str, known: Iterable[str]) -> str:
    """What was expected instead of a word: one of these, and perhaps the one that was meant."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"one of {', '.join(names) or 'none'}" + (f" · did you mean {near[0]}?" if near else "")


def spell(node: Node) -> str:
    """The tree as text, every operation in brackets, every literal in one spelling."""
    kids = [spell(kid) for kid in node.kids]
    if node.kind == "text":
        return quoted(str(node.value))
    if node.kind == "chain" and isinstance(node.value, tuple):
        rest = "".join(f" {sign} {kid}" for sign, kid in zip(node.value, kids[1:], strict=True))
        return f"({kids[0]}{rest})"
    if node.kind == "map":
        return "{" + ", ".join(f"{k}: {v}" for k, v in zip(kids[::2], kids[1::2], strict=True)) + "}"
    if node.kind == "call" and node.name not in METHODS:
        return f"{node.name}({', '.join(kids)})"
    if node.kind == "list":
        return f"[{', '.join(kids)}]"
    return _FORMS.get(node.kind, "{name}").format(*kids, name=node.name, item=node.value, rest=", ".join(kids[1:]))


_FORMS = {
    "unary": "({name}{0})",
    "cond": "({0} ? {1} : {2})",
    "select": "{0}.{name}",
    "index": "{0}[{1}]",
    "has": "has({0})",
    "call": "{0}.{name}({1})",
    "macro": "{0}.{name}({item}, {rest})",
}


def names_of(text: str) -> frozenset[str]:
    """The variables that an expression begins its paths with. Raises BadRule."""
    found: set[str] = set()
    todo = [parse(text, source="an expression")]
    bound: set[str] = set()
    while todo:
        node = todo.pop()
        if node.kind == "name":
            found.add(node.name)
        elif node.kind == "macro":
            bound.add(str(node.value))
        todo += node.kids
    return frozenset(found - bound)
