"""`agentmesh gateway`: the doors over HTTP, until told to stop; and the OpenAPI document of this release."""

from __future__ import annotations

from typing import Annotated

import typer

from agentmesh.cli.output import document, say
from agentmesh.cli.session import Insecure, Json, accepting, loud_log, opened


def gateway(
    ctx: typer.Context,
    address: Annotated[str | None, typer.Option(help="ADDRESS:PORT; else gateway.address of the settings.")] = None,
    insecure: Insecure = None,
    openapi: Annotated[bool, typer.Option("--openapi", help="Print the OpenAPI document, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Let intents in over HTTP, and show and steer traces. In development it prints a token that opens every door."""
    if openapi:
        import json

        from agentmesh.console.gateway import describe

        print(json.dumps(describe(), indent=2, sort_keys=True, ensure_ascii=False))
        return
    with opened(ctx, {"gateway.address": address, "mesh.accepted": accepting(ctx, insecure)}) as mesh:
        from agentmesh.cli.production import require_closed
        from agentmesh.console.exposure import check_open
        from agentmesh.console.serving import Server

        settings = mesh.settings
        check_open(settings.gateway, keys=mesh.key_table.others(mesh.key.kid))
        require_closed(mesh, settings.gateway.address)
        loud_log(settings)
        token = mesh.gateway.parts.authenticator.start_token() if settings.mesh.environment == "development" else None

        def listening(url: str) -> None:
            if as_json:
                document("gateway", url=url, token=token)
                return
            say(f"gateway  {url} (Ctrl-C ends it)")
            if token is not None:
                say(f"token    {token}")
                say(f'next     curl -H "Authorization: Bearer {token}" {url}/v1/traces')

        Server(mesh.gateway, listening).serve_until_stopped()
