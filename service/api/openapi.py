"""The OpenAPI document of one app: what FastAPI cannot know, added once.

Limits are settings, so they are written into the schemas of the app that has them; the problem document is a schema
that no route returns as a model.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.api.access import role_for
from service.api.problems import problems
from service.schemas import Problem
from service.settings import ApiSettings

_Schemas = dict[str, dict[str, Any]]
_SCHEME = "key"


def complete(app: FastAPI, settings: ApiSettings) -> None:
    """Make `app.openapi` tell the limits, the problem document and who may call what."""
    document: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            components = document()["components"]
            schemas = components["schemas"]
            _, problem = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
            schemas |= problem["$defs"]
            _write_limits(schemas, settings)
            components["securitySchemes"] = {_SCHEME: {"type": "http", "scheme": "bearer"}}
            _write_access(document()["paths"], settings)
        return document()

    app.openapi = openapi  # type: ignore[method-assign]


def _write_access(paths: dict[str, Any], settings: ApiSettings) -> None:
    """The role of each call. A service without keys takes one and does not look at it, as OpenAI's clients send one."""
    for path, operations in paths.items():
        for method, operation in operations.items():
            role = role_for(method.upper(), path, settings)
            if role is None:
                operation["security"] = []
                continue
            operation["security"] = [{_SCHEME: []}] if settings.keys else [{}, {_SCHEME: []}]
            operation["description"] = f"{operation['description']}\n\nWants a key of role {role} where there are keys."
            refusals = {str(status): each for status, each in problems(401, 403, 429).items()}
            operation["responses"] = refusals | operation["responses"]


def _write_limits(schemas: _Schemas, settings: ApiSettings) -> None:
    for name, key in (("EmbedRequest", "inputs"), ("SearchRequest", "query"), ("OpenAIRequest", "input")):
        for choice in schemas[name]["properties"][key]["oneOf"]:
            if choice["type"] == "string":
                choice["maxLength"] = settings.max_text_chars
            elif choice["items"]["type"] == "string":
                choice["maxItems"] = settings.max_inputs
                choice["items"]["maxLength"] = settings.max_text_chars
            elif choice["items"]["type"] == "array":
                choice["maxItems"] = settings.max_inputs
    schemas["SearchRequest"]["properties"]["top_k"]["maximum"] = settings.max_top_k
    schemas["SearchRequest"]["properties"]["offset"]["maximum"] = settings.max_top_k
    schemas["DocumentsRequest"]["properties"]["documents"]["maxItems"] = settings.max_documents
    schemas["DocumentIn"]["properties"]["text"]["maxLength"] = settings.max_text_chars
