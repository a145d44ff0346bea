"""delegate without waiting: the other trace goes its own way."""


def show(stage):
    kept = []

    def archive(session):
        kept.append(session.payload["note"])
        return {"answer": "kept"}

    stage.agent("archive", archive)
    assert stage.run("tell", {"note": "paid"}).result(0) == "told"
    assert kept == ["paid"]
