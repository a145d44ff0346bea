"""retry: the failed step again, under the same keys; what succeeded before is not done again."""

from agentmesh.errors import Permanent
from agentmesh.state.retry import retry


def show(stage):
    runs, up = [], []

    @stage.tool("reserve")
    def reserve() -> int:
        runs.append("reserve")
        return 1

    @stage.tool("charge")
    def charge() -> str:
        runs.append("charge")
        if not up:
            raise Permanent("the bank is down")
        return "charged"

    trace = stage.run("charge")
    assert trace.status() == "failed"
    up.append("bank")
    stage.mesh.doorbell.ring(retry(stage.mesh.db, tenant="default", trace_id=trace.id, by="ann"))
    stage.go_on()
    assert (trace.result(0), runs) == ("charged", ["reserve", "charge", "charge"])
