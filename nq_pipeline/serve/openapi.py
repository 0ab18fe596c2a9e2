"""The description of the interface: `/openapi.json`, and a page for people that loads nothing."""

from __future__ import annotations

from datetime import date, datetime
from importlib.metadata import version
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from nq_pipeline.market.contracts import Series
from nq_pipeline.serve.endpoints import ENDPOINTS
from nq_pipeline.serve.formats import MEDIA_TYPES
from nq_pipeline.serve.queries import FORMS, Parameter
from nq_pipeline.serve.sockets import REPLAY_PARAMETERS, STREAM_PARAMETERS

_TYPES: dict[type, dict[str, str]] = {
    datetime: {"type": "string", "format": "date-time"},
    date: {"type": "string", "format": "date"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    Series: {"type": "string"},
    str: {"type": "string"},
}
_ROWS = {
    "description": "Rows. Instants are UTC; `<name>_ns` is in nanoseconds since 1970. Missing is null.",
    "content": {media: {} for media in MEDIA_TYPES.values()},
}
_REFUSED = {"description": "What is wrong with the request, as `error` in a JSON object."}
SOCKETS = {
    "/stream": (
        "WebSocket: trades, quotes, gaps and snapshots as they come, in batches with a cursor.",
        STREAM_PARAMETERS,
    ),
    "/replay": ("WebSocket: a recorded span in order of time, as the same messages.", REPLAY_PARAMETERS),
}


def document() -> dict[str, Any]:
    """The interface as OpenAPI 3.1. WebSockets are the GET requests with which they begin."""
    paths: dict[str, Any] = {
        endpoint.path: {"get": _operation(endpoint.summary, endpoint.parameters)} for endpoint in ENDPOINTS
    }
    query = Parameter("query", str, "one statement that only reads, as for `nq sql`")
    paths["/sql"] = {
        "get": _operation("The result of a query.", (query,)),
        "post": {
            **_operation("The result of a query in the body.", ()),
            "requestBody": {"content": {"text/plain": {"schema": {"type": "string"}}}, "required": True},
        },
    }
    for path, (summary, parameters) in SOCKETS.items():
        operation = _operation(summary, parameters)
        operation["responses"] = {"101": {"description": "The WebSocket begins."}}
        operation["parameters"].pop()  # no format
        paths[path] = {"get": operation}
    paths["/metrics"] = {
        "get": {
            "summary": "Lag, records, gaps, requests, runs and spend for Prometheus.",
            "responses": {"200": {"description": "Metrics.", "content": {"text/plain": {}}}},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "nq_pipeline", "version": version("nq_pipeline"), "description": "Read-only."},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def page() -> str:
    """The interface as HTML, without scripts or anything to load."""
    return Environment(autoescape=True).from_string(_PAGE).render(document=document(), style=Markup(STYLE))


def _operation(summary: str, parameters: tuple[Parameter, ...]) -> dict[str, Any]:
    form = {"name": "format", "in": "query", "description": "instead of the header Accept",
            "schema": {"type": "string", "enum": list(MEDIA_TYPES)}}  # fmt: skip
    return {
        "summary": summary,
        "parameters": [
            *(
                {
                    "name": one.name,
                    "in": "query",
                    "description": f"{one.meaning} ({FORMS[one.kind]})",
                    "schema": _TYPES[one.kind],
                }
                for one in parameters
            ),
            form,
        ],
        "responses": {"200": _ROWS, **dict.fromkeys(("400", "401", "404", "406", "500", "503"), _REFUSED)},
    }


STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { font: 600 1.1rem ui-monospace, monospace; margin: 2rem 0 0 }
td { padding: .1rem 1rem .1rem 0; vertical-align: top }
td:first-child { font-family: ui-monospace, monospace }
"""
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>nq serve</title><style>{{ style }}</style>
<h1>nq serve {{ document.info.version }}</h1>
<p>Read-only. Rows come as JSON, CSV or Arrow IPC by the header <code>Accept</code> or <code>?format=</code>.
<a href="/openapi.json">openapi.json</a></p>
{% for path, methods in document.paths.items() %}{% for method, operation in methods.items() %}
<h2>{{ method.upper() }} {{ path }}</h2>
<p>{{ operation.summary }}</p>
<table>{% for parameter in operation.parameters %}
<tr><td>{{ parameter.name }}<td>{{ parameter.description }}</tr>{% endfor %}
</table>{% endfor %}{% endfor %}
</html>
"""
