"""How much of an agent's work may be under way at once, and how often it may begin, for each key of its intents.

The key is an expression that is evaluated when an intent is dispatched; equal keys share a lane. Admission itself is
the Scheduler's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from agentmesh.behavior.expressions import compile as compile_expression
from agentmesh.behavior.templates import found
from agentmesh.errors import BadPayload, BadRule
from agentmesh.infrastructure import jsontext
from agentmesh.records import Json, Record

KEY_VARIABLES = ("intent", "payload", "from_", "context_id", "agent", "tenant")
"""What the expression of a key may name: all that is known before a trace begins."""
SECONDS = {"s": 1, "min": 60, "h": 3600, "day": 86_400}
MAX_LANE_CHARS = 200

Places = Annotated[int, Field(ge=1, le=100_000)]


class Limits(Record):
    """At most `concurrency` open traces of one key, `total` of all keys of a tenant, and no more than `rate` new ones of
    one key in any such time. `key` None: all traces share one lane. What waits for a person or a time is open, too."""

    key: Annotated[str, StringConstraints(min_length=1, max_length=2000)] | None = None
    concurrency: Places | None = None
    rate: Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,3}/(s|min|h|day)$")] | None = None
    total: Places | None = None

    @model_validator(mode="after")
    def _limits_something(self) -> Limits:
        if self.concurrency is None and self.rate is None and self.total is None:
            raise ValueError("a limit says concurrency, rate or total")
        return self

    def announced(self) -> dict[str, Json]:
        """As the table of agents has them, the rate as a number in so many seconds."""
        made: dict[str, Json] = self.model_dump(mode="json", exclude_none=True, exclude={"rate"})
        if self.rate is not None:
            number, _, unit = self.rate.partition("/")
            made |= {"rate_n": int(number), "rate_s": SECONDS[unit]}
        return made


def check_key(text: str, source: str) -> None:
    """Raises BadRule, with the place, for a key that no intent could have."""
    compile_expression(text, source=source, variables=KEY_VARIABLES)


def lane(limits: Mapping[str, Any], variables: Mapping[str, Json]) -> str:
    """The lane of an intent, as JSON; null where its key is a path that leads nowhere.

    Raises BadPayload where the key cannot be made of this intent.
    """
    key = limits.get("key")
    try:
        value = None if key is None else found(key, variables, "limits.key")
    except BadRule as exc:
        raise BadPayload(
            f"the key by which agent {variables['agent']} is limited cannot be made of this intent: {exc.what}",
            expected=f"an intent that has {key}",
        ) from exc  # fmt: skip
    text = jsontext.dumps(value, what="the key of a limit")
    return text if len(text) <= MAX_LANE_CHARS else f"sha256:{jsontext.digest(value)}"
