"""A library of four books: what a model may look up, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass

from agentmesh import ToolContext, register_tool
from agentmesh.errors import Permanent


@dataclass(frozen=True)
class Book:
    id: int
    title: str
    author: str


BOOKS = (
    Book(1, "Frankenstein", "Mary Shelley"),
    Book(2, "The Time Machine", "H. G. Wells"),
    Book(3, "The Invisible Man", "H. G. Wells"),
    Book(4, "Middlemarch", "George Eliot"),
)


@register_tool("search_books", needs=["library:read"], timeout=5, inline=True)
def search_books(ctx: ToolContext, words: str) -> list[Book]:  # noqa: ARG001
    """Books whose title or author has one of the words."""
    wanted = words.lower().split()
    return [book for book in BOOKS if any(word in f"{book.title} {book.author}".lower() for word in wanted)]


@register_tool("reserve_book", needs=["library:reserve"], timeout=5, effect="keyed")
def reserve_book(ctx: ToolContext, book: int) -> str:
    """Reserve a book by its id for the member who asks. The slip's number is the same however often this runs."""
    if all(one.id != book for one in BOOKS):
        raise Permanent(f"there is no book {book}")
    return f"slip {ctx.idempotency_key[:8]} for {ctx.payload['member']}"
