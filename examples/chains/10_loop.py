"""set and jump_if: a loop with a bound and a variable."""


def show(stage):
    @stage.tool("draft")
    def draft(turn: int) -> dict:
        return {"text": f"draft {turn}", "low_confidence": turn < 3}

    assert stage.run("refine").result(0) == {"text": "draft 3", "turns": 3}
