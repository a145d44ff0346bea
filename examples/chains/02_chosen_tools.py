"""A reasoner chooses the tools, sees what they found, and chooses again."""


def clerk(session):
    return {"tools": [{"tool": "orders"}] if "orders" not in session.results else [{"tool": "stock"}]}


def show(stage):
    @stage.tool("orders")
    def orders() -> int:
        return 7

    @stage.tool("stock")
    def stock() -> int:
        return 3

    trace = stage.run("answer", reasoners={"clerk": clerk})
    assert trace.result(0) == 3
    assert stage.path(trace) == ["clerk", "tools", "clerk", "tools"]
