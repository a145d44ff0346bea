"""What a worker refuses from its broker: anybody who can write there may ring, and nothing more.

`harden` is for processes that only work (it changes kombu and Celery for the whole process); `Door` is the consumer
that looks at every task message before it is decoded. The rows decide the rest.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any, NoReturn

from celery import Celery
from celery.worker.consumer import Consumer
from celery.worker.control import Panel
from celery.worker.request import Request
from kombu import compression as kombu_compression
from kombu import serialization as kombu_serialization

log = logging.getLogger(__name__)
# kombu is annotated in part
compression: Any = kombu_compression
serialization: Any = kombu_serialization

MAX_MESSAGE_BYTES = 256 * 1024  # an envelope has 64 KiB at most; twice base64 and its headers fit
_PLAIN = ("application/data", "application/text")  # kombu trusts these without looking at accept_content
_CANVAS = ("callbacks", "errbacks", "chain")
_ORDERS = ("eta", "expires", "timelimit")
_HARMLESS_CONTROL = ("enable_events",)  # how Flower asks to be told: it says no more than inspect does
_INSPECT_ONLY_FOR_DEBUGGING = ("objgraph", "memsample", "memdump")


class Refused(Exception):
    """A message that is not decoded. The text says why, without its content."""


def harden(app: Celery, *, on_refused: Callable[[str], None] | None = None) -> None:
    """In this process: no decompression, no decoder but JSON's, none of Celery's own tasks in `app`, and a remote
    control that can only look. `on_refused` is told the reason of every message that the door turns away."""
    for kind in compression.encoders():
        compression.register(compression.get_encoder(kind)[0], _no_decoder, kind)
    for name in [known for known in serialization.registry.name_to_type if known != "json"]:
        serialization.unregister(name)
    for kind in _PLAIN:
        serialization.register(f"refused-{kind}", None, _no_decoder, kind)
    app.finalize()
    for name in [known for known in app.tasks if known.startswith("celery.")]:
        app.tasks.pop(name)
    for task in (app.Task, *app.tasks.values()):
        task.Request = f"{__name__}:{QuietRequest.__name__}"
    for name, info in list(Panel.meta.items()):
        looks = info.type == "inspect" and name not in _INSPECT_ONLY_FOR_DEBUGGING
        if not looks and name not in _HARMLESS_CONTROL:
            Panel.meta.pop(name)
            Panel.data.pop(name)
            Panel.data.pop(info.alias, None)
    if app.conf.broker_url and app.conf.broker_url.startswith("redis"):
        from agentmesh.communication.redis_line import be_sturdy  # noqa: PLC0415 - half a second, for Redis alone

        be_sturdy()
    app.on_refused_message = on_refused


def _no_decoder(_: object) -> NoReturn:
    raise Refused("neither compression nor anything but JSON is taken")


def strip_foreign_canvas(task: Any) -> None:
    """Callbacks, errbacks and chain that came with the message of the running `task` are forgotten: nothing of ours
    puts them there. Its chord stays, because Celery tells our backend of a part's end by it."""
    request = task.request
    request.callbacks = request.errbacks = request.chain = None


class QuietRequest(Request):  # type: ignore[misc]
    """What `inspect active` and Flower are told of a message: the representations, never the arguments."""

    def info(self, safe: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002 - Celery's signature
        return super().info(safe=True)


class Door(Consumer):  # type: ignore[misc]
    """Celery's consumer behind a door: what is not a plain JSON task message of protocol 2 is rejected unread, and
    what a message orders beyond its arguments (canvas, delays, limits) is dropped."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_message(message: Any) -> Any:
            try:
                _check(message)
                _disarm(message)
            except Refused as refused:
                return self._turn_away(message, str(refused))
            return handle(message)

        return on_message

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002 - Celery's signature
        """A task of another release: its row is rung again until a worker hears it that knows the task. Celery's own
        handler would log the body, which may be an envelope."""
        log.warning("not known here, left to others: %.200r", message.headers["task"])
        message.reject_log_error(log, self.connection_errors)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """kombu could not build the message; its own handler would log what is in it."""
        self._turn_away(message, str(exc) if isinstance(exc, Refused) else type(exc).__name__)

    def _turn_away(self, message: Any, reason: str) -> None:
        log.warning("a message from the broker was refused: %s", reason)
        message.reject_log_error(log, self.connection_errors)
        told = getattr(self.app, "on_refused_message", None)
        if told is not None:
            told(reason)


def _check(message: Any) -> None:
    headers = message.headers
    if message.content_type != "application/json" or (message.content_encoding or "").lower() not in {"utf-8", "utf8"}:
        raise Refused("it is not typed as JSON in UTF-8")
    if headers.get("compression"):
        raise Refused("it is compressed")
    if not isinstance(headers.get("task"), str) or not isinstance(headers.get("id"), str):
        raise Refused("it is not a task message of protocol 2")
    if not isinstance(message.body, str | bytes | memoryview) or len(message.body) > MAX_MESSAGE_BYTES:
        raise Refused(f"it is larger than {MAX_MESSAGE_BYTES} bytes")


def _disarm(message: Any) -> None:
    for order in _ORDERS:
        if message.headers.get(order) is not None:
            message.headers[order] = None
    try:
        body = json.loads(bytes(message.body) if isinstance(message.body, memoryview) else message.body)
        args, kwargs, embed = body
    except (ValueError, TypeError, RecursionError):
        raise Refused("its body is not arguments") from None
    if not (isinstance(body, list) and (list, dict, dict) == (type(args), type(kwargs), type(embed))):
        raise Refused("its body is not arguments")
    if any(embed.get(order) for order in _CANVAS):
        kept = {**embed, **dict.fromkeys(_CANVAS)}
        message.body = json.dumps((args, kwargs, kept))
