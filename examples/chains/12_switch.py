"""switch: the first case that holds, else `else`, else the next step."""


def show(stage):
    assert stage.run("sort_mail", {"kind": "bill"}).result(0) == "to the books"
    assert stage.again({"kind": "thanks"}).result(0) == "to the wall"
    assert stage.again({"kind": "riddle"}).result(0) == "to a person"
