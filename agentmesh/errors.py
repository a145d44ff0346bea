"""What can go wrong, by name.

Every error carries a stable code and says what failed, which value, what was expected and what to do next; CLI,
Python and HTTP print the same parts. A class is named for what happened. Nothing here imports anything of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class MeshError(Exception):
    """Base of every error of ours. `exit_code` is what the command line returns for it."""

    code: ClassVar[str] = "E_INTERNAL"
    exit_code: ClassVar[int] = 1
    expected: str = "see the documentation of this code"
    next: str = "agentmesh doctor"

    def __init__(
        self,
        what: str,
        *,
        value: object = None,
        expected: str | None = None,
        next: str | None = None,  # noqa: A002
    ) -> None:
        super().__init__(what)
        self.what = what
        self.value = None if value is None else _shown(value)
        self.expected = expected or type(self).expected
        self.next = next or type(self).next
        self.about: dict[str, Any] = {}  # recorded beside the parts where this failed a call or a reasoner

    def parts(self) -> dict[str, Any]:
        """Code, what, value, expected, next: the shape every door prints."""
        return {
            "code": self.code,
            "what": self.what,
            "value": self.value,
            "expected": self.expected,
            "next": self.next,
        }

    def __str__(self) -> str:
        value = "" if self.value is None else f" (got {self.value})"
        return f"{self.code}  {self.what}{value}; expected {self.expected}. Next: {self.next}"


def _shown(value: object, limit: int = 200) -> str:
    """At most `limit` characters, control characters visibly escaped."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "…"


# --- what a tool author raises -----------------------------------------------------------------------------------


class Permanent(Exception):
    """Raised by a tool: doing this again will not help. The call is not retried."""


class Retry(Exception):
    """Raised by a tool: try again, no sooner than `after` seconds (None: the usual back-off)."""

    def __init__(self, message: str = "", *, after: float | None = None) -> None:
        super().__init__(message or "the tool asked for a retry")
        self.after = after


# --- usage and configuration (exit 2) -----------------------------------------------------------------------------


class BadSettings(MeshError):
    code = "E_SETTINGS"
    exit_code = 2
    expected = "the settings listed by 'agentmesh config show'"
    next = "agentmesh config show --origin"


class BadAgentFile(MeshError):
    code = "E_AGENT_FILE"
    exit_code = 2
    expected = "an agent file as config/agents/ shows"
    next = "agentmesh agents list"


class BadChain(MeshError):
    code = "E_CHAIN_FILE"
    exit_code = 2
    expected = "a chain as docs/chains.md shows"
    next = "agentmesh chains lint"

    def __init__(self, what: str, *, problems: Sequence[object] = (), **parts: Any) -> None:
        super().__init__(what, **parts)
        self.problems = tuple(problems)


class BadRule(MeshError):
    code = "E_RULE"
    exit_code = 2
    expected = "a CEL expression of at most 2 KiB, depth 32, one macro level"
    next = "agentmesh agents list"


class BadToolFile(MeshError):
    code = "E_TOOL_FILE"
    exit_code = 2
    expected = "a tool file: tool, arguments, result and one adapter"
    next = "agentmesh tools list"


class SecretMissing(MeshError):
    """A secret that a declaration names. Its value is in no message."""

    code = "E_SECRET"
    exit_code = 2
    expected = "the variable AGENTMESH_SECRET_<NAME>, or AGENTMESH_SECRET_<NAME>_FILE"
    next = "agentmesh config show"


class BadPrompt(MeshError):
    code = "E_PROMPT"
    exit_code = 2
    expected = "what the model is told, then a line '---', then the data with places such as {{ payload.text }}"
    next = "agentmesh agents list"


class BadTool(MeshError):
    code = "E_TOOL_DECLARATION"
    exit_code = 2
    expected = "a function whose parameters have type hints"
    next = "agentmesh tools list"


class NoSigningKey(MeshError):
    code = "E_NO_SIGNING_KEY"
    exit_code = 2
    expected = "a private Ed25519 key file named by the settings (keys.private)"
    next = "agentmesh keys new"


class PluginRefused(MeshError):
    code = "E_PLUGIN"
    exit_code = 2
    expected = "an installed distribution listed as 'name==version' in settings (plugins)"
    next = "agentmesh config show"


class Mistake(MeshError):
    """A wrong argument to one of our functions."""

    code = "E_USAGE"
    exit_code = 2
    next = "agentmesh --help"


# --- bad input (refused before anything is written) -----------------------------------------------------------------


class BadJson(MeshError):
    code = "E_JSON"
    exit_code = 2
    expected = "strict JSON: UTF-8, no NaN or infinity, no duplicate keys, depth <= 64, integers <= 20 digits"
    next = "agentmesh submit --dry-run"


class BadYaml(MeshError):
    code = "E_YAML"
    exit_code = 2
    expected = "one YAML 1.2 document without anchors, aliases, merge keys and tags, at most 256 KiB"
    next = "agentmesh config show"


class NotFinite(BadJson):
    code = "E_JSON_NUMBER"
    expected = "finite numbers: neither NaN nor infinity, nor what overflows"


class DuplicateKey(BadJson):
    code = "E_JSON_DUPLICATE_KEY"
    expected = "each key once in an object"


class BadPayload(MeshError):
    code = "E_PAYLOAD"
    exit_code = 2
    expected = "a JSON object"
    next = "agentmesh submit --dry-run"


class PayloadTooLarge(BadJson):
    code = "E_PAYLOAD_TOO_LARGE"
    exit_code = 2
    expected = "at most 16 MiB of JSON"
    next = "agentmesh submit --dry-run"


class BadRequest(MeshError):
    """A request over HTTP that no route takes as it is. `faults` are pairs of a JSON pointer and what is wrong there."""

    code = "E_REQUEST"
    exit_code = 2
    expected = "a request as /openapi.json describes it"
    next = "agentmesh gateway --help"

    def __init__(
        self, what: str, *, status: int = 422, faults: tuple[tuple[str, str], ...] = (), **parts: Any
    ) -> None:  # fmt: skip
        super().__init__(what, **parts)
        self.status, self.faults = status, faults


class BadName(MeshError):
    code = "E_NAME"
    exit_code = 2
    expected = "1 to 64 of a-z 0-9 _ -, beginning with a letter"
    next = "agentmesh agents list"


class BadPermission(MeshError):
    code = "E_PERMISSION_GRAMMAR"
    exit_code = 2
    expected = "object:verb of a-z 0-9 _ . - (a wildcard '*' only as the last part of a grant)"
    next = "agentmesh tools list"


class BadPolicy(MeshError):
    code = "E_POLICY"
    exit_code = 2
    expected = "the policy fields of config/policies/"
    next = "agentmesh submit --dry-run"


class UnknownAgent(MeshError):
    code = "E_AGENT_UNKNOWN"
    exit_code = 3
    expected = "an agent that a worker has announced"
    next = "agentmesh agents list"


class NoAgent(MeshError):
    code = "E_NO_AGENT"
    exit_code = 3
    expected = "an agent that a worker has announced with it"
    next = "agentmesh agents list"


class UnknownIntent(MeshError):
    code = "E_INTENT_UNKNOWN"
    exit_code = 3
    expected = "an intent the agent declares"
    next = "agentmesh agents show"


class UnknownCall(MeshError):
    code = "E_CALL_UNKNOWN"
    exit_code = 3
    expected = "the id of a tool call"
    next = "agentmesh trace show"


class UnknownDelivery(MeshError):
    code = "E_DELIVERY_UNKNOWN"
    exit_code = 3
    expected = "the id of a delivery that has failed"
    next = "agentmesh webhooks list --failed"


class UnknownTool(MeshError):
    code = "E_TOOL_UNKNOWN"
    exit_code = 3
    expected = "a registered tool"
    next = "agentmesh tools list"


class UnknownPlan(MeshError):
    code = "E_PLAN_UNKNOWN"
    exit_code = 3
    expected = "a plan that a worker has announced"
    next = "agentmesh trace show"


class UnknownTrace(MeshError):
    code = "E_TRACE_UNKNOWN"
    exit_code = 3
    expected = "the id of a trace, or a unique prefix of one"
    next = "agentmesh trace list"


class TracePruned(UnknownTrace):
    code = "E_TRACE_PRUNED"
    expected = "a trace that has not been taken out"


class ArchiveRefused(MeshError):
    code = "E_ARCHIVE"
    exit_code = 5
    expected = "a folder that takes and keeps what is written; nothing that is not archived was deleted"
    next = "agentmesh prune --help"


class UnknownMemory(MeshError):
    code = "E_MEMORY_UNKNOWN"
    exit_code = 3
    expected = "a key that something was remembered under, and a version it has had"
    next = "agentmesh memory get"


class UnknownSchedule(MeshError):
    code = "E_SCHEDULE_UNKNOWN"
    exit_code = 3
    expected = "the name of a schedule"
    next = "agentmesh schedule list"


class ScheduleTaken(MeshError):
    code = "E_SCHEDULE_TAKEN"
    exit_code = 4
    expected = "a change in that file, or another name"
    next = "agentmesh schedule list"


class UnknownLetter(MeshError):
    code = "E_LETTER_UNKNOWN"
    exit_code = 3
    expected = "the id of an open dead letter"
    next = "agentmesh dlq list"


class UnknownPage(MeshError):
    code = "E_PAGE_UNKNOWN"
    exit_code = 3
    expected = "a path that /openapi.json lists"
    next = "agentmesh gateway --help"


class UnknownKey(MeshError):
    code = "E_KEY_UNKNOWN"
    exit_code = 3
    expected = "the fingerprint of a registered key, or a unique beginning of one"
    next = "agentmesh keys list"


class NoDecision(MeshError):
    code = "E_DECISION_UNKNOWN"
    exit_code = 3
    expected = "a trace in which a reasoner has decided"
    next = "agentmesh trace show"


class Ambiguous(MeshError):
    code = "E_AMBIGUOUS"
    exit_code = 2
    expected = "a prefix that only one trace has"
    next = "agentmesh trace list"


# --- refused (exit 4) ---------------------------------------------------------------------------------------------


class Forbidden(MeshError):
    code = "E_FORBIDDEN"
    exit_code = 4
    expected = "a permission the trace was granted"
    next = "agentmesh trace show"


class CallEnded(MeshError):
    code = "E_CALL_ENDED"
    exit_code = 4
    expected = "a call that is running"
    next = "agentmesh trace show"


class KeyConflict(MeshError):
    code = "E_IDEMPOTENCY_CONFLICT"
    exit_code = 4
    expected = "the payload that the key was first used with"
    next = "agentmesh trace show"


class KeyContended(MeshError):
    code = "E_IDEMPOTENCY_CONTENDED"
    exit_code = 4
    expected = "a transaction at read committed, or a key nobody else is using"
    next = "agentmesh submit --key"


class TraceTaken(MeshError):
    """Another intent has this trace id already."""

    code = "E_TRACE_TAKEN"
    exit_code = 4
    expected = "a trace id that is new, as UUIDv7 are"
    next = "agentmesh submit"


class TooLate(MeshError):
    """An order to a trace that has ended."""

    code = "E_TOO_LATE"
    exit_code = 4
    expected = "a trace that has not ended"
    next = "agentmesh trace show"


class Unauthenticated(MeshError):
    """Credentials that are not believed; the message never tells why."""

    code = "E_UNAUTHENTICATED"
    exit_code = 4
    expected = "a bearer token or an API key that is in force"
    next = "agentmesh keys list"


class RateLimited(MeshError):
    """Too much in too short a time; after `after_s` seconds there is room again."""

    code = "E_RATE"
    exit_code = 4
    expected = "fewer requests at a time"
    next = "agentmesh config show"

    def __init__(self, what: str, *, after_s: float = 1.0, **parts: Any) -> None:
        super().__init__(what, **parts)
        self.after_s = after_s


class Backlogged(RateLimited):
    """More of a tenant's traces wait to begin than may."""

    code = "E_BACKLOG"
    expected = "fewer traces that wait, or a greater limits.backlog"
    next = "agentmesh trace list --filter status:queued"


class NotRetryable(MeshError):
    code = "E_NOT_RETRYABLE"
    exit_code = 4
    expected = "a failed trace with a step that failed"
    next = "agentmesh trace show"


class NotResolvable(MeshError):
    code = "E_NOT_RESOLVABLE"
    exit_code = 4
    expected = "a failed call of effect 'once', at which its trace has failed"
    next = "agentmesh trace show"


class EnvelopeRefused(MeshError):
    """An envelope that is not believed. `reason` is for counters and audit; the message never tells which."""

    code = "E_ENVELOPE"
    exit_code = 4
    expected = "a compact Ed25519 JWS of a known key, for this queue, not expired"
    next = "agentmesh keys list"

    def __init__(self, reason: str) -> None:
        super().__init__("the envelope was refused")
        self.reason = reason


class TargetRefused(MeshError):
    """Somewhere this process was to call, and may not."""

    code = "E_TARGET"
    exit_code = 4
    expected = "a public address, or one that its declaration allows"
    next = "agentmesh tools list"


class Unsafe(MeshError):
    code = "E_UNSAFE"
    exit_code = 4
    expected = "a loopback address, or authentication"
    next = "agentmesh doctor"


# --- services (exit 5) --------------------------------------------------------------------------------------------


class DatabaseUnreachable(MeshError):
    code = "E_DATABASE"
    exit_code = 5
    expected = "a PostgreSQL >= 15 that answers"
    next = "agentmesh doctor"


class NoPostgres(MeshError):
    """The embedded PostgreSQL cannot be found, started or stopped."""

    code = "E_POSTGRES"
    exit_code = 5
    expected = "PostgreSQL >= 15 that this user can start (pip install 'agentmesh[embedded]'), or a database URL"
    next = "agentmesh doctor"


class DatabaseNotMigrated(MeshError):
    code = "E_SCHEMA"
    exit_code = 5
    expected = "the schema of this release"
    next = "agentmesh db upgrade"


class ReleaseTooOld(MeshError):
    code = "E_RELEASE"
    exit_code = 5
    next = "agentmesh db status"


class DatabaseBusy(MeshError):
    """A table that a migration alters stayed locked."""

    code = "E_DATABASE_BUSY"
    exit_code = 5
    next = "agentmesh db upgrade"


class BrokerUnreachable(MeshError):
    code = "E_BROKER"
    exit_code = 5
    expected = "a broker that answers"
    next = "agentmesh doctor"


class GatewayUnreachable(MeshError):
    """No answer of a gateway; what was sent may have been accepted. Sending it again under its key is safe."""

    code = "E_GATEWAY"
    exit_code = 5
    expected = "a gateway that answers"
    next = "agentmesh gateway"


class Overloaded(MeshError):
    """The gateway does not answer this now: too much at once, or what is behind it hangs."""

    code = "E_OVERLOADED"
    exit_code = 5
    expected = "an answer in time; the same request again, under the same key, is safe"
    next = "agentmesh doctor"


class PoolTimeout(MeshError):
    code = "E_POOL_TIMEOUT"
    exit_code = 5
    expected = "a free database connection"
    next = "agentmesh doctor"


class OutcomeUnknown(MeshError):
    """A commit whose answer was lost and that could not be settled yet. Submit again with the same key."""

    code = "E_COMMIT_UNKNOWN"
    exit_code = 5
    expected = "an answer to COMMIT"
    next = "agentmesh trace show"


class ExportRefused(MeshError):
    """A back end did not take events; they stay where they are."""

    code = "E_EXPORT"
    exit_code = 5
    expected = "a back end that takes what it is sent"
    next = "agentmesh export --help"


class ModelUnreachable(MeshError):
    """A model's endpoint does not answer, or not to the end: trying again may help."""

    code = "E_MODEL"
    exit_code = 5
    expected = "an OpenAI-compatible endpoint that answers to the end"
    next = "agentmesh doctor"


class ModelBusy(MeshError):
    """A model's endpoint asked to come again, `after` so many seconds (None: it did not say when)."""

    code = "E_MODEL_BUSY"
    exit_code = 5
    expected = "an endpoint with room for one more question"
    next = "agentmesh doctor"

    def __init__(self, what: str, *, after: float | None = None, **parts: Any) -> None:
        super().__init__(what, **parts)
        self.after = after


class WorkerEnded(MeshError):
    """A worker process that should run does not."""

    code = "E_WORKER_ENDED"
    exit_code = 5
    expected = "a worker that runs until it is told to stop"
    next = "agentmesh doctor"


# --- integrity and time (exit 6, 7) -------------------------------------------------------------------------------


class SchemaDrift(MeshError):
    code = "E_DRIFT"
    exit_code = 6
    expected = "the declared schema"
    next = "agentmesh db check"


class AuditBroken(MeshError):
    """The audit, or an anchor of it, is not what was written."""

    code = "E_AUDIT"
    exit_code = 6
    expected = "a whole chain that meets its anchors"
    next = "agentmesh audit verify --json"


class BlobMissing(MeshError, LookupError):
    """A row refers to a value that was put aside and is not there."""

    code = "E_BLOB"
    exit_code = 6
    expected = "every value that a row refers to"
    next = "agentmesh doctor --deep"


class InvariantBroken(MeshError):
    code = "E_INVARIANT"
    exit_code = 6
    expected = "no rows"
    next = "agentmesh doctor --deep"


class StillWorking(MeshError):
    code = "E_STILL_WORKING"
    exit_code = 7
    expected = "an end within the time given"
    next = "agentmesh trace show"


# --- how a call, a reasoner or a trace fails (recorded with the row, seldom raised to a person) -----------------------


class TraceFailed(MeshError):
    code = "E_TRACE_FAILED"
    expected = "a trace that ends done"
    next = "agentmesh trace show"


class ToolFailed(MeshError):
    code = "E_TOOL"
    expected = "a tool that returns a result"
    next = "agentmesh tools show"


class BadArguments(MeshError):
    code = "E_ARGUMENTS"
    expected = "the tool's argument schema"
    next = "agentmesh tools show"


class BadResult(MeshError):
    code = "E_RESULT"
    expected = "what the tool's return annotation allows"
    next = "agentmesh tools show"


class AnswerRefused(MeshError):
    """What another system answered is not read to its end."""

    code = "E_ANSWER"
    expected = "an answer within the limits"
    next = "agentmesh tools list"


class BadAction(MeshError):
    code = "E_ACTION"
    expected = '{"answer": …} or {"tools": [...], "strategy", "require"}'
    next = "agentmesh trace show"


class ModelRefused(MeshError):
    """What a model's endpoint answered means that asking again cannot help."""

    code = "E_MODEL_REFUSED"
    expected = "base_url, model and key of an OpenAI-compatible endpoint"
    next = "agentmesh agents show"


class ModelOverLimit(MeshError):
    code = "E_MODEL_LIMIT"
    expected = "a question and an answer within the limits of the agent's file (max_tokens, max_bytes)"
    next = "agentmesh agents show"


class TimedOut(MeshError):
    code = "E_TIMEOUT"
    expected = "an end before the deadline"
    next = "agentmesh trace show"


class ReasonerFailed(MeshError):
    code = "E_REASONER"
    expected = "an action"
    next = "agentmesh trace show"


class CallbackFailed(MeshError):
    code = "E_CALLBACK"
    expected = "a verdict"
    next = "agentmesh trace show"


class StepLimit(MeshError):
    code = "E_STEP_LIMIT"
    expected = "an end within max_steps"
    next = "agentmesh trace show"


class DelegationTooDeep(MeshError):
    code = "E_DEPTH"
    expected = "at most 16 hops of delegation"
    next = "agentmesh trace show"


class ToolCommitted(MeshError):
    code = "E_TOOL_COMMITTED"
    expected = "a transactional tool that leaves COMMIT and ROLLBACK to the engine"
    next = "agentmesh tools show"


class TraceEnded(MeshError):
    code = "E_ENDED"
    exit_code = 4
    expected = "a trace that has not ended"
    next = "agentmesh trace show"


class AlreadyDecided(MeshError):
    code = "E_DECIDED"
    exit_code = 4
    expected = "an approval that nobody has decided"
    next = "agentmesh approvals"


class NotAsked(MeshError):
    code = "E_NOT_ASKED"
    exit_code = 4
    expected = "somebody who is asked"
    next = "agentmesh approvals"


class BadChoice(MeshError):
    code = "E_CHOICE"
    exit_code = 2
    expected = "one of the options"
    next = "agentmesh approvals"


class NotRewindable(MeshError):
    code = "E_NOT_REWINDABLE"
    exit_code = 4
    expected = "a step of this trace at which it can begin anew"
    next = "agentmesh trace show"


class BadMemory(MeshError):
    code = "E_MEMORY"
    exit_code = 2
    expected = "an entry as an agent declares it"
    next = "agentmesh agents list"


class BadEmbedding(MeshError):
    code = "E_EMBEDDING"
    expected = "for every text one vector of numbers, all of one length"
    next = "agentmesh doctor"


class NoEmbedder(MeshError):
    """Nothing here turns a text into a vector."""

    code = "E_NO_EMBEDDER"
    exit_code = 2
    expected = "an embedder in the agent's memory, or [embeddings] in the settings"
    next = "agentmesh config show"


class MemoryChanged(MeshError):
    code = "E_MEMORY_CHANGED"
    exit_code = 4
    expected = "the version that was read before"
    next = "agentmesh memory history"


class NothingOpen(MeshError):
    code = "E_NOTHING_OPEN"
    exit_code = 4
    expected = "a trace that runs or waits, with one open step"
    next = "agentmesh trace show"


class DoesNotFit(MeshError):
    code = "E_PLAN_FIT"
    exit_code = 4
    expected = "a plan that has every open step of the trace"
    next = "agentmesh chains diff"
