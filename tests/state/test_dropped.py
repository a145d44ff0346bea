"""Calls that an early join drops: closed with their attempts, whatever becomes of their workers."""


def test_the_attempt_of_a_dropped_call_is_ended_though_its_worker_never_answers(lab):
    uses = [{"tool": "work", "as": one} for one in "ab"]
    trace = lab.open(*uses, strategy="parallel", require="any")
    first, _second = (lab.claim(one) for one in lab.calls(trace))
    lab.bells.ring(lab.settle(first, result=1).rings)
    lab.drain()
    assert trace.status() == "done"
    assert lab.outcomes(trace) == ["won", "stale"]
    assert None not in [one["ended_at"] for one in lab.attempts(trace)]
