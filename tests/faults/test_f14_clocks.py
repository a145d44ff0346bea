"""F14: workers whose clocks are wrong, jump, or run at double speed: time limits, leases and timers are the database's."""

from __future__ import annotations

import random
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentmesh.communication.envelope import Envelope, audience, sign
from agentmesh.records import new_id
from agentmesh.testing import until
from agentmesh.wiring import now_s
from tests.faults.bench import Bench
from tests.meshes import Process

LATE_S = (
    "SELECT extract(epoch FROM ended_at - started_at)::float8 FROM mesh.attempts WHERE outcome IN ('timeout', 'stale')"
)


class Clock:
    """A clock that only some workers see: so many seconds beside the real one, and so many times as fast."""

    def __init__(self, file: Path) -> None:
        found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not found:
            pytest.skip("libfaketime is not here (Debian: faketime)")
        self._file = file
        self.env = {
            "LD_PRELOAD": str(found[0]), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        self.set(0)

    def set(self, offset_s: int, speed: float = 1) -> None:
        self._file.write_text(f"{offset_s:+d}s x{speed:g}\n")


def worker(bench: Bench, kind: str, offset_s: int, speed: float = 1) -> tuple[Process, Clock]:
    clock = Clock(bench.home / f"clock-{len(bench.processes)}")
    clock.set(offset_s, speed)
    made = bench.worker(kind, wait=False, **clock.env)
    return made, clock


@pytest.mark.parametrize(("offset_s", "speed"), [
    (-600, 1), pytest.param(600, 1, marks=pytest.mark.faults), pytest.param(0, 2, marks=pytest.mark.faults),
])  # fmt: skip
def test_f14_workers_ten_minutes_off_or_at_double_speed_keep_the_databases_time(
    make_bench: Any, offset_s: int, speed: float
) -> None:
    bench: Bench = make_bench("redis")
    made = [worker(bench, kind, offset_s, speed) for kind in ("agents", "tools", "tools")]
    for process, _ in made:
        bench.wait_for(process)
    wrong = bench.rows("SELECT name FROM mesh.workers WHERE abs(extract(epoch FROM clock_timestamp() - beat_at)) > 30")
    assert wrong == []  # a beat has the database's time
    slow = [bench.given({"tool": "sleepy", "args": {"gate": "gate"}}, {"tool": "part", "args": {"n": n}},
                        strategy="fallback") for n in range(3)]  # fmt: skip
    traces = [trace for _, _, trace in bench.wf(12)]
    assert [one.result(timeout=40) for one in slow] == [0, 1, 4]
    bench.open("gate")
    bench.settle()
    assert {trace.status() for trace in traces} == {"done"}
    assert speed > 1 or round(off_s(made[0][0]), -2) == offset_s
    assert bench.outcomes()["lost"] == 0  # nobody was taken for dead
    assert all(0.4 < row["extract"] < 0.5 + 1 + 1.5 for row in bench.rows(LATE_S))
    assert bench.value("SELECT count(*) FROM mesh.workers WHERE state = 'dead'") == 0


def off_s(process: Process) -> float:
    """How far the times in a worker's log are beside ours."""
    said = re.findall(r"^20\d\d-\S+T\S+", process.text(), re.MULTILINE)
    last = datetime.fromisoformat(said[-1]).replace(tzinfo=UTC)
    return last.timestamp() - process.log.stat().st_mtime


@pytest.mark.faults
def test_f14_a_clock_that_jumps_moves_no_lease_and_no_time_limit(make_bench: Any, chance: random.Random) -> None:
    bench: Bench = make_bench("redis")
    made = [worker(bench, kind, 0) for kind in ("agents", "agents", "tools", "tools")]
    for process, _ in made:
        bench.wait_for(process)
    running = bench.given({"tool": "gated", "args": {"gate": "gate", "n": 3}})
    bench.until_ran("gated")
    traces = []
    for n in range(8):
        for _, clock in made:
            clock.set(chance.choice((-600, -60, 0, 60, 600)), chance.choice((1, 1, 2)))
        traces.append(bench.start("parallel", n))
        threading.Event().wait(0.5)
    assert running.status() == "running"
    doomed = made[2][0]
    bench.open("gate")
    running.result(timeout=20)
    doomed.kill()
    lost = bench.start("parallel", 9)
    assert lost.result(timeout=40)
    bench.settle()
    assert {trace.status() for trace in traces} == {"done"}
    assert bench.outcomes()["lost"] <= 4  # of the one that was killed
    until(lambda: bench.value("SELECT count(*) FROM mesh.workers WHERE state = 'dead'") == 1, what="one death")


@pytest.mark.faults
def test_f14_a_gateway_ninety_seconds_ahead_believes_what_its_clock_allows_and_loses_nothing(make_bench: Any) -> None:
    """It sees an envelope's times 90 s later than whoever signed it; 30 s of that it overlooks."""
    bench: Bench = make_bench("redis")
    bench.worker("agents")
    clock = Clock(bench.home / "clock-gateway")
    clock.set(90)
    url, token = bench.gateway(**clock.env)
    plain = {"to": bench.agent("worker"), "from": "bench", "intent": "work", "context_id": "c",
             "payload": {"shape": "answer", "n": 1}}  # fmt: skip
    with httpx.Client(base_url=url, timeout=30, verify=False) as client:

        def signed(at_s: int, life_s: int) -> int:
            body = {
                "meta": {"trace_id": new_id(), "timestamp": now_s(), "from": "bench", "to": bench.agent("worker")},
                "context": {"context_id": "c"}, "command": {"intent": "work", "payload": plain["payload"]},
            }  # fmt: skip
            made = sign(
                Envelope.model_validate(body), bench.mesh.key, aud=audience(bench.mesh.settings.mesh.name, "gateway"),
                jti=new_id(), now_s=now_s() + at_s, life_s=life_s,
            )  # fmt: skip
            said = client.post(
                f"/agent/{bench.agent('worker')}", content=made, headers={"content-type": "application/jose"}
            )
            return said.status_code

        assert [signed(0, 300), signed(0, 75), signed(0, 45)] == [201, 201, 401]  # its end: at 60 s
        assert [signed(105, 300), signed(135, 300)] == [201, 401]  # its beginning: at 120 s
        said = client.post("/v1/intents", json=plain, headers={"Authorization": f"Bearer {token}"})
        assert said.status_code == 201
    bench.settle()  # workers, whose clocks are right, refuse the envelope that it signed; its row is rung again
    assert bench.statuses() == {("worker", "done"): 4}
