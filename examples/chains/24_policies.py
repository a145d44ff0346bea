"""Policies: the step's over the chain's over the agent's; what the intent says stands over all of them."""


def show(stage):
    @stage.tool("call")
    def call() -> None:
        raise OSError("nobody answers")

    trace = stage.run("insist", policy={"tool_attempts": 5})
    assert [one["attempts"] for one in stage.calls(trace)] == [2, 3]
    trace = stage.again(policy={"tool_attempts": 1})
    assert [one["attempts"] for one in stage.calls(trace)] == [1, 1]
