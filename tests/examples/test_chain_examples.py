"""The numbered examples of chains: each runs, ends as it says, and stands in the language's reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentmesh.errors import BadChain
from agentmesh.execution import chain
from agentmesh.execution.chain import Known
from agentmesh.execution.chainparts import KINDS
from agentmesh.infrastructure import yamltext
from examples.chains import __main__ as examples
from examples.chains.stage import HERE

REFERENCE = examples.REFERENCE.read_text("utf-8")
FRAGMENTS = re.findall(r"```yaml\n(.*?)```", examples.PLACE.sub("", REFERENCE), re.DOTALL)


@pytest.mark.parametrize("name", examples.NAMES)
def test_an_example_ends_as_it_says(name: str, database_url: str, tmp_path: Path) -> None:
    examples.run(name, database_url, tmp_path)


def test_the_reference_shows_every_example_as_it_is() -> None:
    assert sorted(examples.PLACE.findall(REFERENCE)) == examples.NAMES
    assert examples.shown(REFERENCE) == REFERENCE, "python -m examples.chains docs"


@pytest.mark.parametrize("text", FRAGMENTS)
def test_a_chain_in_the_reference_is_one(text: str) -> None:
    whole = text if text.startswith("chain:") else f"chain: c\nsteps:\n{text}"
    known = Known(chains=chain.load([HERE]))
    assert chain.lint(yamltext.load(whole, source="docs/chains.md", error=BadChain), known)[1] == []


def test_the_reference_names_every_key_of_every_kind() -> None:
    for kind, keys in KINDS.items():
        assert f"`{kind}`" in REFERENCE
        missing = [key for key in keys if f"`{key}`" not in REFERENCE]
        assert missing == [], kind
