"""on_fail, retry, timeout: what a failing step does before the trace has to fail."""


def show(stage):
    tried = []

    @stage.tool("hotel")
    def hotel() -> str:
        tried.append(1)
        raise OSError("the hotel does not answer")

    trace = stage.run("book", {"name": "Ada"})
    assert (trace.result(0), len(tried)) == ("sorry, Ada", 2)
