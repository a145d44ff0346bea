"""chain: another chain as one step. Both are pinned: a deploy changes neither under a running trace."""


def show(stage):
    @stage.tool("pack")
    def pack(order: int) -> str:
        return f"parcel {order}"

    @stage.tool("send")
    def send(ctx) -> str:
        return f"{ctx.results['pack']} sent"

    assert stage.run("order_tea", {"number": 4}).result(0) == "tea: parcel 4 sent"
