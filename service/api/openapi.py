"""The OpenAPI document of one app: what FastAPI cannot know, added once.

Limits are settings, so they are written into the schemas of the app that has them; the problem document is a schema
that no route returns as a model.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.schemas import Problem
from service.settings import ApiSettings

_Schemas = dict[str, dict[str, Any]]


def complete(app: FastAPI, settings: ApiSettings) -> None:
    """Make `app.openapi` tell the limits and the problem document."""
    document: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = document()["components"]["schemas"]
            _, problem = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
            schemas |= problem["$defs"]
            _write_limits(schemas, settings)
        return document()

    app.openapi = openapi  # type: ignore[method-assign]


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
