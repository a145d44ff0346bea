"""Parallel: tools run at once, each result under its name."""


def show(stage):
    @stage.tool("orders")
    def orders() -> int:
        return 7

    @stage.tool("stock")
    def stock() -> int:
        return 3

    assert stage.run("look_up").result(0) == {"orders": 7, "in_stock": 3}
