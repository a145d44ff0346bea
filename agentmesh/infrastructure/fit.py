"""Whether a value fits a JSON Schema. Foreign patterns run in linear time, and no schema is fetched from anywhere."""

from __future__ import annotations

from collections.abc import Mapping

import jsonschema_rs

from agentmesh.records import Json


def misfit(schema: Mapping[str, Json], value: Json) -> str | None:
    """What of a value a JSON Schema does not allow, and where; None when it fits."""
    error = next(iter(_validator(schema).iter_errors(value)), None)
    if error is None:
        return None
    where = ".".join(str(part) for part in error.instance_path)
    return f"{where}: {error.message}" if where else str(error.message)


def flaw(schema: Mapping[str, Json]) -> str | None:
    """Why this is no JSON Schema; None when it is one."""
    try:
        _validator(schema)
    except jsonschema_rs.ValidationError as exc:
        return str(exc.message)
    except (jsonschema_rs.ReferencingError, ValueError) as exc:
        return str(exc)
    return None


def _validator(schema: Mapping[str, Json]) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(dict(schema), pattern_options=jsonschema_rs.RegexOptions(), offline=True)
