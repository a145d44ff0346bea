"""`agentmesh keys new | issue | register | list | revoke`: who is believed. Private halves are never printed."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from agentmesh.cli.output import document, moment, pairs, say, table
from agentmesh.cli.session import Json, opened, settings_of

app = typer.Typer(name="keys", help="Signing keys, and API keys for the gateway.", no_args_is_help=True)


@app.command()
def new(
    ctx: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(help="Where the private half goes; else keys.private of the settings.")
    ] = None,
    grant: Annotated[
        list[str] | None, typer.Option(help="A permission its owner may give; repeatable; '*' for all.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Whose it is; else the mesh's name.")] = None,
    as_json: Json = False,
) -> None:
    """Make a key: the private half in a file of yours (0600), the public half registered in the database."""
    from agentmesh.communication.keys import new_key
    from agentmesh.errors import Mistake
    from agentmesh.records import check_permissions

    settings = settings_of(ctx)
    target = path or settings.keys.private
    if target is None:
        raise Mistake("no file is named for the key", expected="a path, or keys.private in the settings",
                      next="agentmesh keys new PATH")  # fmt: skip
    grants = check_permissions(grant or ["*"], wildcards=True)
    with opened(ctx) as mesh:
        key = new_key(target, tenant=mesh.tenant)
        name = owner or settings.mesh.name
        mesh.key_table.register(
            kid=key.kid, tenant_id=key.tenant, owner=name, public=key.public, grants=grants, by=getpass.getuser()
        )
    if as_json:
        document("key", kid=key.kid, tenant=key.tenant, owner=name, grants=list(grants), path=target.absolute())
        return
    pairs(
        {
            "key": key.kid,
            "tenant": key.tenant,
            "owner": name,
            "grants": ", ".join(grants),
            "file": str(target.absolute()),
        }
    )
    say("name the file in the settings: [keys] private")


@app.command()
def issue(
    ctx: typer.Context,
    owner: Annotated[str, typer.Argument(help="Whose it is.")],
    grant: Annotated[
        list[str] | None, typer.Option(help="What it may do, as traces:read, or may give to intents; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an API key for a machine that talks to the gateway. It is printed once; only a digest of it is kept."""
    from agentmesh.communication.keys import new_api_key
    from agentmesh.records import check_permissions

    grants = check_permissions(grant or [], wildcards=True)
    with opened(ctx) as mesh:
        kid, token, digest = new_api_key()
        mesh.key_table.register(
            kid=kid, tenant_id=mesh.tenant, owner=owner, public=digest, grants=grants, by=getpass.getuser()
        )
    if as_json:
        document("key", kid=kid, tenant=mesh.tenant, owner=owner, grants=list(grants), token=token)
        return
    pairs({"key": kid, "tenant": mesh.tenant, "owner": owner, "grants": ", ".join(grants) or "none", "token": token})
    say("keep the token now: it is not shown again")


@app.command()
def register(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(help="A PEM file with the public half of an Ed25519 key.")],
    owner: Annotated[str, typer.Option(help="Whose it is.")],
    grant: Annotated[list[str] | None, typer.Option(help="A permission its owner may give; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Believe what a producer signs that keeps its private half itself."""
    from agentmesh.communication.keys import kid_of, read_public
    from agentmesh.records import check_permissions

    grants = check_permissions(grant or [], wildcards=True)
    public = read_public(path)
    kid = kid_of(public)
    with opened(ctx) as mesh:
        mesh.key_table.register(
            kid=kid, tenant_id=mesh.tenant, owner=owner, public=public, grants=grants, by=getpass.getuser()
        )
    if as_json:
        document("key", kid=kid, tenant=mesh.tenant, owner=owner, grants=list(grants))
        return
    pairs({"key": kid, "tenant": mesh.tenant, "owner": owner, "grants": ", ".join(grants) or "none"})


@app.command("list")
def list_(ctx: typer.Context, as_json: Json = False) -> None:
    """Every key by its fingerprint."""
    with opened(ctx) as mesh:
        rows = mesh.key_table.all(mesh.tenant)
    for row in rows:
        del row["public"]
    if as_json:
        document("keys", keys=rows)
        return
    table(
        ["key", "owner", "grants", "registered", "revoked"],
        ([row["kid"], row["owner"], ", ".join(row["grants"]), moment(row["registered_at"]), moment(row["revoked_at"])]
         for row in rows),
        empty="no key is registered; next  agentmesh keys new PATH",
    )  # fmt: skip


@app.command()
def revoke(
    ctx: typer.Context, key: Annotated[str, typer.Argument(help="Its fingerprint, or a unique beginning of it.")],
    as_json: Json = False,
) -> None:  # fmt: skip
    """Believe this key no more; everywhere within 20 seconds. What it signed before stays as it is."""
    from agentmesh.errors import UnknownKey

    with opened(ctx) as mesh:
        found = [row for row in mesh.key_table.all(mesh.tenant) if row["kid"].startswith(key)]
        if len(found) != 1 or not key:
            raise UnknownKey("no single key begins so", value=key,
                             expected=f"one of {', '.join(row['kid'] for row in found) or 'those listed'}")  # fmt: skip
        kid = found[0]["kid"]
        now = mesh.key_table.revoke(kid, by=getpass.getuser())
    if as_json:
        document("key", kid=kid, revoked=True, changed=now)
    else:
        say(f"{kid} is revoked" if now else f"{kid} was revoked before")
