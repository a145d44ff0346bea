"""Serial: tools run one after the other, and a later one reads the results of the earlier ones."""


def show(stage):
    @stage.tool("pack")
    def pack(order: int) -> str:
        return f"parcel {order}"

    @stage.tool("send")
    def send(ctx) -> str:
        return f"{ctx.results['pack']} sent"

    assert stage.run("ship", {"order": 9}).result(0) == "parcel 9 sent"
