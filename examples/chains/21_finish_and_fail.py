"""finish and fail: ends with a result, or with a code and a message of the chain's own."""

import pytest

from agentmesh.errors import TraceFailed


def show(stage):
    assert stage.run("reserve", {"item": "tea", "stock": 2}).result(0) == {"reserved": "tea"}
    with pytest.raises(TraceFailed, match="no stock of milk") as failed:
        stage.again({"item": "milk", "stock": 0}).result(0)
    assert failed.value.value == "E_STOCK"
