"""A callback handles the result of the step before it: it writes memory, and may rule how to go on."""

from agentmesh import register_callback


def show(stage):
    @stage.tool("balance")
    def balance(n: int = 3) -> int:
        return n

    @register_callback("judge")
    def judge(result, session):
        return {"verdict": "continue", "memory": [{"key": "balance", "value": result}]}

    assert stage.run("remember").result(0) == 3
