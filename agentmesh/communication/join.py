"""The result backend: a chord's join is the guarded countdown in Postgres, so nothing is stored or polled here.

A tool task returns the rings that recording its result led to (the next call of its slot, or the step that joined);
Celery then calls `on_chord_part_return`, which rings them. Bodies and callbacks inside a message are ignored.
"""

from __future__ import annotations

from typing import Any

from celery import states
from celery.backends.base import BaseBackend


class JoinBackend(BaseBackend):  # type: ignore[misc]
    """Celery's result backend over rows that are already committed. `ring` is handed over by wiring."""

    persistent = True
    supports_autoexpire = True

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self.thread_safe = True

    def ensure_chords_allowed(self) -> None:
        """Chords need nothing of us."""

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """The countdown was committed before the header is published; no task polls for it."""

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Ring what the recorded result led to; after a lost child there is nothing, its row is given back."""
        ring = self.app.agentmesh_ring
        if state == states.SUCCESS and isinstance(result, tuple) and result:
            ring(result)

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """A task that failed left its row to the rescuer; error callbacks in its message are ignored."""

    def store_result(self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None,
                     **kwargs: Any) -> Any:  # fmt: skip
        return result

    def _store_result(self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None,
                      **kwargs: Any) -> Any:  # fmt: skip
        return result

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        return {"task_id": task_id, "status": states.PENDING, "result": None, "traceback": None, "children": []}

    def _forget(self, task_id: str) -> None:
        """Nothing is kept."""

    def _save_group(self, group_id: str, result: Any) -> Any:
        return result

    def _restore_group(self, group_id: str) -> None:
        """Nothing is kept."""

    def _delete_group(self, group_id: str) -> None:
        """Nothing is kept."""

    def cleanup(self) -> None:
        """Nothing is kept."""

    def as_uri(self, include_password: bool = True) -> str:
        return "agentmesh://rows"
