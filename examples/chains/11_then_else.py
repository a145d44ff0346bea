"""jump_if, then, else: one of two ways."""


def show(stage):
    assert stage.run("settle", {"cents": 20_000}).result(0) == "a person decides"
    assert stage.again({"cents": 5}).result(0) == "paid"
