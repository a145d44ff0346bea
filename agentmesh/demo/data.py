"""What the demo works on: BANKING77, packed beside this file, or a CSV of the user's own.

Texts and labels are real (see BANKING77.md). Customers and ages are not in the data: both are
derived from the row's number by `customer_of` and `age_of`, and every page that shows them says so.
Nothing here touches a database.
"""

from __future__ import annotations

import csv
import gzip
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TextIO

from agentmesh.errors import Mistake
from agentmesh.records import Json

CUSTOMERS = 500
MAX_AGE_DAYS = 14
MAX_TEXT_CHARS = 10_000
SEED = 77


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a customer. `category` is its label, None where nobody has labelled it."""

    case: str
    text: str
    category: str | None
    customer: int
    age_days: int


def customer_of(row: int) -> int:
    """A customer's number from 1 to 500, derived from the row's number alone."""
    return row * 7919 % CUSTOMERS + 1


def age_of(row: int) -> int:
    """An age from 0 to 13 days, derived from the row's number alone; most are young."""
    spread = row * 104_729 % 1000 / 1000
    return int(MAX_AGE_DAYS * spread**3)


def load_cases() -> list[Message]:
    """The 10,003 labelled train messages: the past cases."""
    return list(_rows("train"))


def load_test_messages(n: int, seed: int = SEED) -> list[Message]:
    """`n` messages of the test set, spread evenly over the 77 categories; the same for one seed.

    Raises Mistake unless 1 <= n <= 3080.
    """
    by_category: dict[str, list[Message]] = defaultdict(list)
    for message in _rows("test"):
        by_category[str(message.category)].append(message)
    total = sum(len(found) for found in by_category.values())
    if not 1 <= n <= total:
        raise Mistake(
            "the demo has not that many messages",
            value=n,
            expected=f"1 to {total}",
            next="agentmesh demo",
        )
    shuffle = random.Random(seed)  # noqa: S311 - a spread that can be repeated, not a secret
    for found in by_category.values():
        shuffle.shuffle(found)
    order = sorted(by_category)
    shuffle.shuffle(order)
    rounds = max(len(found) for found in by_category.values())
    dealt = (by_category[name][turn] for turn in range(rounds) for name in order if turn < len(by_category[name]))
    return [message for message, _ in zip(dealt, range(n), strict=False)]


def read_input(path: Path, n: int | None = None) -> list[Message]:
    """The messages of a user's CSV (`text`, maybe `category`, `customer`); the first `n` if given.

    Raises Mistake with the line's number for what is not well formed; nothing is skipped silently.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = list(_read_csv(file, path))
    except OSError as exc:
        raise _refusal(path, "cannot be read", exc.strerror or exc) from None
    except UnicodeDecodeError as exc:
        raise _refusal(path, "is not UTF-8", f"byte {exc.start}") from None
    if not found:
        raise _refusal(path, "has no messages", "0 rows")
    return found if n is None else found[:n]


def intents(messages: Iterable[Message], *, run: str) -> list[dict[str, Json]]:
    """One `dispatch` a message, as keyword arguments. The label stays behind: no agent sees it."""
    return [
        {
            "intent": "analyze_complaint_and_solve",
            "from_id": "demo",
            "to_id": "complaint_analysis_agent",
            "context_id": f"customer-{one.customer}",
            "payload": {
                "run": run,
                "case": one.case,
                "text": one.text,
                "customer": one.customer,
                "age_days": one.age_days,
            },
        }
        for one in messages
    ]


def labels(messages: Iterable[Message]) -> dict[str, str]:
    """The label of each case that has one."""
    return {one.case: one.category for one in messages if one.category is not None}


def _rows(split: str) -> Iterator[Message]:
    packed = files("agentmesh.demo").joinpath("banking77.csv.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").splitlines(keepends=True)
    number = 0
    for row in csv.DictReader(lines):
        if row["split"] == split:
            yield Message(
                f"{split}-{number}",
                row["text"],
                row["category"],
                customer_of(number),
                age_of(number),
            )
            number += 1


def _read_csv(file: TextIO, path: Path) -> Iterator[Message]:
    reader = csv.DictReader(file, strict=True)
    try:
        _check_header(reader.fieldnames, path)
        for number, row in enumerate(reader):
            yield _message(number, row, f"{path}:{reader.line_num}")
    except csv.Error as exc:
        raise _refusal(f"{path}:{reader.reader.line_num}", "is not CSV", exc) from None


def _check_header(names: Sequence[str] | None, path: Path) -> None:
    if names is None or "text" not in names or len(set(names)) != len(names):
        raise _refusal(f"{path}:1", "has no usable header", ",".join(names or ()) or "nothing")


def _message(number: int, row: dict[str, str], where: str) -> Message:
    # A None key holds cells beyond the header, a None value is a cell that is missing.
    if None in row or None in row.values():
        raise _refusal(where, "has another number of cells than the header", len(row))
    text = row["text"].strip()
    if not text or len(text) > MAX_TEXT_CHARS:
        raise _refusal(where, "has an empty or too long text", f"{len(text)} characters")
    if "\0" in text:
        raise _refusal(where, "has a NUL character", text)
    customer = row.get("customer", "").strip()
    if customer and not re.fullmatch(r"[1-9][0-9]{0,8}", customer):
        raise _refusal(where, "has a customer that is no number", customer)
    return Message(
        case=f"input-{number + 1}",
        text=text,
        category=row.get("category", "").strip() or None,
        customer=int(customer) if customer else customer_of(number),
        age_days=age_of(number),
    )


def _refusal(where: object, what: str, value: object) -> Mistake:
    return Mistake(
        f"{where} {what}",
        value=value,
        expected=f"UTF-8 CSV: text (1 to {MAX_TEXT_CHARS} characters)[,category][,customer]",
        next="agentmesh demo --input FILE.csv",
    )
