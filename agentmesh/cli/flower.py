"""`agentmesh flower`: Flower on the configured broker, read-only, on loopback or behind a password."""

from __future__ import annotations

from typing import Annotated

import typer

from agentmesh.cli.output import document, say
from agentmesh.cli.session import Insecure, Json, accepting, opened


def flower(
    ctx: typer.Context,
    address: Annotated[str | None, typer.Option(help="ADDRESS:PORT; else flower.address of the settings.")] = None,
    insecure: Insecure = None,
    as_json: Json = False,
) -> None:
    """Watch tasks and workers in a browser. The password stands in the settings (flower.basic_auth)."""
    from agentmesh.communication.flower import check_address, run_flower

    with opened(ctx, {"flower.address": address, "mesh.accepted": accepting(ctx, insecure)}) as mesh:
        from agentmesh.cli.production import require_closed

        section = mesh.settings.flower
        host, _, port = section.address.rpartition(":")
        auth = section.basic_auth.get_secret_value() if section.basic_auth else None
        check_address(host.strip("[]"), auth)
        require_closed(mesh, section.address)
        if as_json:
            document("flower", url=f"http://{section.address}")
        else:
            say(f"Flower: http://{section.address} (Ctrl-C ends it)")
        run_flower(mesh.broker_url, address=host.strip("[]"), port=int(port), basic_auth=auth)
