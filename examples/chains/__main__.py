"""`python -m examples.chains [NUMBER]...` runs examples on a database of their own; `docs` puts them into docs/chains.md."""

from __future__ import annotations

import re
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from agentmesh.errors import BadChain
from agentmesh.execution import chain
from agentmesh.execution.chain import Known
from agentmesh.infrastructure import yamlfiles
from agentmesh.infrastructure.postgres import EmbeddedPostgres
from agentmesh.observation import drawing
from agentmesh.testing import database
from examples.chains.stage import HERE, Stage

REFERENCE = HERE.parents[1] / "docs/chains.md"
NAMES = [file.stem for file in sorted(HERE.glob("[0-9]*.py"))]
PLACE = re.compile(r"<!-- example (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def run(name: str, url: str, home: Path) -> None:
    """The example has ended as it says. Raises AssertionError where it has not."""
    stage = Stage(url, home)
    try:
        import_module(f"examples.chains.{name}").show(stage)
    finally:
        stage.close()


def shown(text: str) -> str:
    """The reference with its examples as they are now."""
    return PLACE.sub(lambda found: f"<!-- example {found[1]} -->\n{_blocks(found[1])}<!-- end -->", text)


def _blocks(name: str) -> str:
    file = HERE / f"{name}.yaml"
    plan = chain.read(yamlfiles.read(file, BadChain), Known(chains=chain.load([HERE])))
    drawn = drawing.mermaid(drawing.picture(plan)).strip()
    blocks = {"yaml": file.read_text("utf-8"), "mermaid": drawn, "python": (HERE / f"{name}.py").read_text("utf-8")}
    return "".join(f"```{kind}\n{text.strip()}\n```\n" for kind, text in blocks.items())


def main(given: list[str]) -> None:
    if given == ["docs"]:
        REFERENCE.write_text(shown(REFERENCE.read_text("utf-8")), "utf-8")
        return
    with tempfile.TemporaryDirectory(prefix="amexamples-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # the server runs under an account of its own when we are root
        server = EmbeddedPostgres(home)
        server.start()
        try:
            _play(given, server.url().replace("+psycopg", ""), home)
        finally:
            server.stop()


def _play(given: list[str], server: str, home: Path) -> None:
    for name in NAMES:
        if not given or name.partition("_")[0] in {f"{int(one):02}" for one in given}:
            with database(server) as url:
                run(name, url, home)
            print(f"{name}: as it says")


if __name__ == "__main__":
    main(sys.argv[1:])
