"""Files of YAML as records: which there are, what one says, and where it says what is wrong."""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from agentmesh.errors import MeshError
from agentmesh.infrastructure import yamltext
from agentmesh.infrastructure.yamltext import YamlText

T = TypeVar("T", bound=BaseModel)


def listed(paths: Iterable[str | Path], error: type[MeshError]) -> list[Path]:
    """These files, and the *.yaml files in these directories; a directory that is not there has none."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.suffix in {".yaml", ".yml"}:
            if not path.is_file():
                raise error("a file that the settings name is not there", value=str(path))
            files.append(path)
        else:
            files += sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    return files


def read(path: Path, error: type[MeshError]) -> YamlText:
    """What the file says. Raises `error`, with file:line:column."""
    try:
        with path.open("rb") as file:
            text = file.read(yamltext.LIMIT_BYTES + 1)
    except OSError as exc:
        raise error("a file cannot be read", value=f"{path}: {exc.strerror}") from None
    return yamltext.load(text, source=str(path), error=error)


def record(model: type[T], text: YamlText, error: type[MeshError]) -> T:
    """The record `text` says. Read as JSON, because strict records take arrays only from there."""
    try:
        return model.model_validate_json(json.dumps(text.data))
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
    path: tuple[str | int, ...] = ()
    for part in first["loc"]:
        path = (*path, part) if (*path, part) in text.marks else path
    key = str(first["loc"][-1]) if first["loc"] else text.source
    if first["type"] == "extra_forbidden":
        unknown(text, path, "has a key that means nothing", key, _keys(first["loc"], model), error)
    if first["type"] == "missing":
        raise error(f"{text.where(*path)}: a key is missing", value=key, expected=f"{key}: …")
    name = ".".join(str(part) for part in first["loc"]) or text.source
    raise error(f"{text.where(*path)}: {name} is not allowed", value=first["input"], expected=first["msg"])


def unknown(
    text: YamlText, path: tuple[str | int, ...], what: str, value: str, known: Iterable[str], error: type[MeshError]
) -> NoReturn:
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=1)
    expected = f"one of {', '.join(names) or 'none'}" + (f" · did you mean {near[0]}?" if near else "")
    raise error(f"{text.where(*path)} {what}", value=value, expected=expected)


def _keys(path: tuple[str | int, ...], model: type[BaseModel]) -> Iterable[str]:
    """The keys allowed where `path` names one that is not."""
    for part in path[:-1]:
        field = model.model_fields.get(str(part))
        each: type[BaseModel] = getattr(model, "each", model)
        model = (field and _model(field.annotation)) or each
    return [field.alias or name for name, field in model.model_fields.items()]


def _model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in typing.get_args(annotation) if (found := _model(one))), None)
