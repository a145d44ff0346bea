"""`agentmesh doctor`: is this mesh well, and what cures it. Each check is one line, ok or FAIL, with its cure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from agentmesh.cli.output import document, is_terminal, safe, span
from agentmesh.cli.session import Json, opened

if TYPE_CHECKING:
    from agentmesh.wiring import Mesh

TOO_OLD_S = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's answer. `cure` is empty where it is well; `code` is the exit code it asks for."""

    name: str
    ok: bool
    says: str
    cure: str = ""
    code: int = 1


def doctor(
    ctx: typer.Context,
    deep: Annotated[bool, typer.Option("--deep", help="Also check the invariants I1 to I12, at rest.")] = False,
    production: Annotated[
        bool, typer.Option("--production", help="Also in development: what is not configured for production.")
    ] = False,
    points: Annotated[bool, typer.Option("--points", help="List the places where tests inject faults.")] = False,
    as_json: Json = False,
) -> None:
    """Is this mesh well, and what cures it? Exits 1 when something is red, 5 when a service does not answer, 6 when
    an invariant is broken."""
    if points:
        from agentmesh.infrastructure.faults import POINTS

        if as_json:
            document("points", points=sorted(POINTS))
        else:
            print("\n".join(sorted(POINTS)))
        return
    with opened(ctx, migrated=False) as mesh:
        found = []
        for one in examine(mesh, deep=deep, production=production):
            found.append(one)
            if not as_json:
                _print(one)
    code = max((one.code for one in found if not one.ok), default=0)
    if as_json:
        document("doctor", well=code == 0, checks=[asdict(one) for one in found])
    raise typer.Exit(code)


def _print(one: Finding) -> None:
    word = "ok  " if one.ok else "FAIL"
    if is_terminal():
        from rich.text import Text

        from agentmesh.cli.output import console

        console().print(Text.assemble((word, "green" if one.ok else "bold red"), f"  {one.name:<12} {safe(one.says)}"))
        if one.cure:
            console().print(Text(f"      {'':<12} → {safe(one.cure)}", style="dim"))
    else:
        print("\t".join([word.strip(), one.name, safe(one.says), safe(one.cure)]))


def examine(mesh: Mesh, *, deep: bool, production: bool = False) -> Iterator[Finding]:
    """Every check, each safe to fail; those behind the database are left out where it does not answer."""
    yield from _run("settings", lambda: _settings(mesh))
    reached = list(_run("database", lambda: _database(mesh)))
    yield from reached
    yield from _run("broker", lambda: _broker(mesh))
    yield from _run("model", lambda: _model(mesh))
    if not all(one.ok for one in reached):
        return
    yield from _run("key", lambda: _key(mesh))
    yield from _run("gateway", lambda: _gateway(mesh))
    for name, look in (
        ("audit", _audit),
        ("agents", _agents),
        ("tools", _tools),
        ("workers", _workers),
        ("waiting", _waiting),
        ("webhooks", _webhooks),
        ("vectors", _vectors),
    ):
        yield from _run(name, lambda look=look: look(mesh))  # type: ignore[misc]
    yield from _run("production", lambda: _production(mesh, whole=production))
    if deep:
        yield from _invariants(mesh)


def _run(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    from agentmesh.errors import MeshError

    try:
        yield from look()
    except MeshError as exc:
        value = f" ({exc.value})" if exc.value else ""
        cure = "agentmesh config show --origin" if exc.next == "agentmesh doctor" else exc.next
        yield Finding(name, ok=False, says=f"{exc.code} {exc.what}{value}", cure=cure, code=exc.exit_code)


def _settings(mesh: Mesh) -> Iterator[Finding]:
    settings = mesh.settings
    yield Finding(
        "settings", ok=True, says=f"mesh {settings.mesh.name}, {settings.mesh.environment}, tenant {mesh.tenant}"
    )


def _database(mesh: Mesh) -> Iterator[Finding]:
    from agentmesh.cli.session import require_migrated

    require_migrated(mesh)
    mesh.blobs.try_room(mesh.tenant)
    version = mesh.db.once("SELECT current_setting('server_version') AS v")[0]["v"]
    where = f"embedded, {mesh.embedded.url()}" if mesh.settings.database.url is None else "configured"
    yield Finding("database", ok=True, says=f"PostgreSQL {version} ({where}), migrated, role limits set")


def _broker(mesh: Mesh) -> Iterator[Finding]:
    mesh.broker.ping()
    yield Finding("broker", ok=True, says=f"{mesh.app.connection_for_write().transport.driver_type} answers")


def _key(mesh: Mesh) -> Iterator[Finding]:
    row = mesh.key_table.row(mesh.key.kid)
    if row is None or row["revoked_at"] is not None:
        yield Finding("key", ok=False, says=f"{mesh.key.kid} is revoked", cure="agentmesh keys new")
        return
    yield Finding("key", ok=True, says=f"{mesh.key.kid} is registered for {row['owner']}")


def _model(mesh: Mesh) -> Iterator[Finding]:
    """Asks nothing: a question costs money."""
    from importlib.util import find_spec

    from agentmesh.behavior.declared import LlmSpec, Models

    llm = mesh.settings.llm
    if not llm.base_url:
        return
    if not llm.model:
        yield Finding(
            "model", ok=False, says=f"none is named for {llm.base_url}", cure="llm.model in the settings", code=2
        )
    elif find_spec("openai") is None:
        yield Finding(
            "model", ok=False, says="its client is not installed", cure="pip install 'agentmesh[llm]'", code=2
        )
    else:
        key = Models(llm.base_url, llm.model, llm.key).key_for(LlmSpec(prompt="-"))
        yield Finding(
            "model", ok=True, says=f"{llm.model} at {llm.base_url}, {'with its key' if key else 'without a key'}"
        )


def _gateway(mesh: Mesh) -> Iterator[Finding]:
    from agentmesh.console.exposure import check_open, lacks

    section = mesh.settings.gateway
    check_open(section, keys=mesh.key_table.others(mesh.key.kid))
    missing = list(lacks(section, shared_rates=mesh.rates_url is not None))
    for one in missing:
        yield Finding("gateway", ok=False, says=f"{section.address}: {one}", cure="agentmesh config show --origin")
    if not missing:
        yield Finding("gateway", ok=True, says=f"would listen on {section.address}")


def _audit(mesh: Mesh) -> Iterator[Finding]:
    if mesh.anchors_path is not None:
        yield Finding("audit", ok=True, says=f"anchored in {mesh.anchors_path}")


def _production(mesh: Mesh, *, whole: bool) -> Iterator[Finding]:
    """In production what is lacking is red; in development it is named, so that nobody has to find it out."""
    from agentmesh.cli.production import lacks

    found = list(lacks(mesh))
    if found and not whole and mesh.settings.mesh.environment != "production":
        names = ", ".join(dict.fromkeys(one.name for one in found))
        yield Finding(
            "production", ok=True, says=f"not configured for it: {names}", cure="agentmesh doctor --production"
        )
        return
    for one in found:
        yield Finding(one.name, ok=False, says=one.says, cure=one.cure)
    if not found:
        yield Finding("production", ok=True, says="configured for it")


def _agents(mesh: Mesh) -> Iterator[Finding]:
    from agentmesh.state import announced

    rows = announced.agents(mesh.db, mesh.tenant)
    if not rows:
        yield Finding("agents", ok=False, says="none was announced", cure="agentmesh worker agents")
    for row in rows:
        if row["workers"]:
            yield Finding("agents", ok=True, says=f"{row['id']}: {row['workers']} live workers, {row['queued']} queued")
        elif row["queued"] or row["running"]:
            yield Finding("agents", ok=False, says=f"{row['id']}: no live worker, {row['queued']} queued",
                          cure="agentmesh worker agents")  # fmt: skip
        else:
            yield Finding("agents", ok=True, says=f"{row['id']}: no live worker, and nothing waits for one")


def _tools(mesh: Mesh) -> Iterator[Finding]:
    from agentmesh.observation import health
    from agentmesh.state import announced

    tools = {row["id"]: row for row in announced.tools(mesh.db, mesh.tenant)}
    wanted = [
        row for row in announced.agents(mesh.db, mesh.tenant) if row["workers"] or row["queued"] or row["running"]
    ]
    named = {name: row["id"] for row in wanted for name in row["spec"].get("tools", [])}
    missing = sorted(set(named) - set(tools))
    idle = sorted(name for name in named if name in tools and not tools[name]["workers"])
    for name in missing:
        yield Finding("tools", ok=False, says=f"{named[name]} names {name}, which nobody announced",
                      cure="agentmesh tools list")  # fmt: skip
    waiting = health.unserved(mesh.db, mesh.tenant)
    for name in sorted({*idle, *waiting}):
        says = f"{name}: no live worker, {waiting.get(name, 0)} calls wait for one"
        yield Finding("tools", ok=False, says=says, cure="agentmesh worker tools")
    if not missing and not idle and not waiting:
        yield Finding("tools", ok=True, says=f"{len(tools)} announced; all that agents name have a worker")


def _workers(mesh: Mesh) -> Iterator[Finding]:
    from agentmesh.observation import health

    seen = health.workers(mesh.db)
    stuck = f", {seen['stuck']} threads stuck in code that ignores its time limit" if seen["stuck"] else ""
    says = f"{seen['alive']} alive, {seen['dead']} dead within an hour{stuck}"
    yield Finding("workers", ok=seen["alive"] > 0, says=says, cure="" if seen["alive"] else "agentmesh worker all")


def _waiting(mesh: Mesh) -> Iterator[Finding]:
    from agentmesh.observation import health

    oldest = health.oldest_ready(mesh.db, mesh.tenant)
    if oldest is None:
        yield Finding("waiting", ok=True, says="nothing is ready and untaken")
    else:
        old = oldest["seconds"] > TOO_OLD_S
        says = f"oldest ready: a {oldest['kind']} on {oldest['queue']}, for {span(oldest['seconds'])}, trace {oldest['trace_id']}"
        yield Finding(
            "waiting", ok=not old, says=says, cure=f"agentmesh trace show {oldest['trace_id']}" if old else ""
        )


def _webhooks(mesh: Mesh) -> Iterator[Finding]:
    from agentmesh.observation import health

    seen = health.deliveries(mesh.db, mesh.tenant)
    says = f"{seen['waiting']} deliveries wait, {seen['failed']} given up within a day"
    yield Finding("webhooks", ok=not seen["failed"], says=says,
                  cure="agentmesh webhooks list --failed" if seen["failed"] else "")  # fmt: skip


def _vectors(mesh: Mesh) -> Iterator[Finding]:
    """Nothing, where memory is not found by meaning."""
    from agentmesh.state import vectors

    for one in vectors.models(mesh.db, mesh.tenant):
        says = f"{one['model']}: {one['vectors']} vectors, {one['waiting']} to be made"
        yield Finding("vectors", ok=one["error"] is None, says=says if one["error"] is None else f"{says}: {one['error']}",
                      cure="agentmesh memory embed" if one["error"] else "")  # fmt: skip


def _invariants(mesh: Mesh) -> Iterator[Finding]:
    from agentmesh.state import invariants

    broken = invariants.broken(mesh.database_url, slack_s=3 * mesh.settings.lease.lease)
    for check in invariants.checks():
        ids = broken.get(check.number, [])
        says = f"{check.says}: {', '.join(ids[:3])}{' …' if len(ids) > 3 else ''}" if ids else check.says
        yield Finding(check.number, ok=not ids, says=says, cure="agentmesh trace show ID" if ids else "", code=6)
