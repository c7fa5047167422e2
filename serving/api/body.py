"""Request bodies as clients really send them: JSON, multipart, and multipart with brackets.

The official SDKs send ``videos.create`` as multipart with every value a string, older ones
as JSON, and nested values as ``a[b]``, ``a[]`` and ``a[][b]``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from serving.plan.errors import InvalidRequest

PATH = re.compile(r"^([^\[\]]+)((?:\[[^\[\]]*\])*)$")
FIELDS_MAX = 200
DEPTH_MAX = 5

Schema = TypeVar("Schema", bound=BaseModel)


async def read_fields(request: Request) -> dict[str, Any]:
    """The body's fields by name. Its size was bounded before (see ``limits.py``)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("application/json", ""):
        return await _json_fields(request)
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await _form_fields(request)
    raise InvalidRequest(
        f"The content type '{kind[:64]}' is not supported; "
        "send application/json or multipart/form-data.",
        code="unsupported_content_type",
    )


async def _json_fields(request: Request) -> dict[str, Any]:
    try:
        fields = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    return fields


async def _form_fields(request: Request) -> dict[str, Any]:
    limit = request.app.state.services.settings.body_bytes_max
    async with request.form(max_files=1, max_fields=FIELDS_MAX, max_part_size=limit) as form:
        pairs: list[tuple[str, str]] = []
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                raise InvalidRequest(
                    f"'{name[:64]}' is a file, and no model served here takes one.",
                    code="unsupported_parameter",
                    param=name[:64],
                )
            pairs.append((name, value))
    return unflatten(pairs)


def body_docs(schema: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a body that :func:`read_fields` reads: the framework cannot see it."""
    content = {
        kind: {"schema": schema.model_json_schema()}
        for kind in ("application/json", "multipart/form-data")
    }
    return {"requestBody": {"required": True, "content": content}}


def unflatten(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Nest bracketed form keys: ``a[b]=1`` is ``{"a": {"b": "1"}}``, ``a[]=1`` a list.

    The SDKs send a list of objects as ``a[][b]`` regrouped by key; a key that repeats begins
    the next object, which is the best anyone can do with it.
    """
    fields: dict[str, Any] = {}
    for name, value in pairs:
        match = PATH.match(name)
        path = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])] if match else [name]
        if len(path) > DEPTH_MAX:
            raise InvalidRequest(f"'{name[:64]}' nests too deep.", param=name[:64])
        _put(fields, path, value, name)
    return fields


def _put(into: dict[str, Any], path: list[str], value: str, name: str) -> None:
    head, rest = path[0], path[1:]
    clash = InvalidRequest(f"'{name[:64]}' is given twice or in two shapes.", param=name[:64])
    if not rest:
        if head in into:
            raise clash
        into[head] = value
    elif rest[0] == "":
        items = into.setdefault(head, [])
        if not isinstance(items, list):
            raise clash
        if len(rest) == 1:
            items.append(value)
            return
        if not items or not isinstance(items[-1], dict) or rest[1] in items[-1]:
            items.append({})
        _put(items[-1], rest[1:], value, name)
    else:
        child = into.setdefault(head, {})
        if not isinstance(child, dict):
            raise clash
        _put(child, rest, value, name)


def _names(schema: type[BaseModel]) -> Iterable[str]:
    """Of its fields, on the wire."""
    return (field.alias or name for name, field in schema.model_fields.items())


def validate(schema: type[Schema], fields: dict[str, Any]) -> Schema:
    """Fields as ``schema``; the first mistake becomes an error that names its field."""
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = ".".join(str(part) for part in first["loc"])[:64]
        if first["type"] == "extra_forbidden":
            raise InvalidRequest(
                f"Unknown parameter '{param}'. Known: {', '.join(_names(schema))}.",
                code="unknown_parameter",
                param=param,
            ) from None
        if first["type"] == "missing":
            raise InvalidRequest(
                f"'{param}' is required.", code="missing_parameter", param=param
            ) from None
        why = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"'{param}': {why}.", param=param) from None
