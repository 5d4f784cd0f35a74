"""The description of the administration API (OpenAPI 3.1), served and tested against."""

from typing import Any

_DIGEST = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
_COUNT = {"type": "integer", "minimum": 0}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


_SCHEMAS: dict[str, Any] = {
    "Errors": _object(
        {
            "errors": {
                "type": "array",
                "items": _object({"code": {"type": "string"}, "message": {"type": "string"}}),
            }
        }
    ),
    "Blob": _object({"digest": _DIGEST, "state": {"type": "string"}, "seen_in": {"type": "array"}}),
    "Image": _object({"image": {"type": "string"}, "digest": _DIGEST, "blobs": {"type": "array"}}),
    "Pinned": _object({"image": {"type": "string"}, "digest": _DIGEST, "changed": _COUNT, "absent": _COUNT}),
    "Purged": _object(
        {
            "image": {"type": "string"},
            "digest": _DIGEST,
            "tag_forgotten": {"type": "boolean"},
            "deleted": _COUNT,
        }
    ),
    "Warm": {
        **_object(
            {"images": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1000}},
            platform={"type": "string", "pattern": "^[a-z0-9]+/[a-z0-9]+(/[a-z0-9]+)?$"},
            limit_rate={"type": "string", "pattern": "^[1-9][0-9]{0,9}[KMG]?(/s)?$"},
        ),
        "additionalProperties": False,
    },
    "Specs": _object({"specs": {"type": "array", "items": {"type": "string"}}}),
    "Spec": {
        "type": "object",
        "properties": {"base": {"type": "string"}, "layers": {"type": "array"}, "env": {"type": "object"}},
        "required": ["base"],
    },
}


def _json(schema: str, description: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"description": description, "content": {"application/json": {"schema": reference}}}


_DONE = {"description": "Done."}
_WARMED = {
    "description": "A line of JSON for each image, as it ends; see registry_facade.warming.",
    "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
}


def _operation(
    summary: str, answers: dict[int, Any], *refusals: int, parameters: list[Any], body: str = ""
) -> dict[str, Any]:
    refused = {status: _json("Errors", "Why not.") for status in (400, 401, 503, *refusals)}
    made: dict[str, Any] = {
        "summary": summary,
        "operationId": summary.lower().rstrip(".").replace(" ", "_").replace("'", ""),
        "parameters": parameters,
        "responses": {str(status): answer for status, answer in {**refused, **answers}.items()},
    }
    if body:
        made["requestBody"] = {"required": True, "content": _json(body, "")["content"]}
    return made


def _parameter(name: str, where: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": where == "path" or name == "name",
        "schema": schema,
        "description": description,
    }


_BLOB = [_parameter("digest", "path", _DIGEST, "Of a blob.")]
_NAME = _parameter(
    "name",
    "query",
    {"type": "string", "minLength": 1, "maxLength": 512},
    "UPSTREAM/repository:tag or @digest, or workspaces/ID.",
)
_BLOBS = _parameter("blobs", "query", {"enum": ["true", "false"]}, "Also delete what only this image needs.")
_ID = {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": 100}
_SPEC = [_parameter("id", "path", _ID, "As in workspaces/<id>; may hold slashes.")]


def document() -> dict[str, Any]:
    """Of every route of `registry_facade.admin.handlers`, and of `registry_facade.warming.handlers`."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "lapstrake registry facade, administration", "version": "1"},
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
        "paths": {
            "/facade/v1/blobs/{digest}": {
                "get": _operation(
                    "Explain a blob.",
                    {200: _json("Blob", "What is known."), 404: _json("Blob", "Nothing is.")},
                    parameters=_BLOB,
                ),
                "delete": _operation("Delete a blob.", {204: _DONE}, 404, parameters=_BLOB),
            },
            "/facade/v1/blobs/{digest}/pin": {
                "put": _operation("Pin a blob.", {204: _DONE}, 404, parameters=_BLOB),
                "delete": _operation("Unpin a blob.", {204: _DONE}, 404, parameters=_BLOB),
            },
            "/facade/v1/image": {
                "get": _operation(
                    "Show an image.", {200: _json("Image", "Its blobs.")}, 404, parameters=[_NAME]
                ),
                "delete": _operation(
                    "Purge an image.",
                    {200: _json("Purged", "What was forgotten.")},
                    404,
                    parameters=[_NAME, _BLOBS],
                ),
            },
            "/facade/v1/image/pin": {
                "put": _operation(
                    "Pin an image.", {200: _json("Pinned", "How many blobs.")}, 404, parameters=[_NAME]
                ),
                "delete": _operation(
                    "Unpin an image.", {200: _json("Pinned", "How many blobs.")}, 404, parameters=[_NAME]
                ),
            },
            "/facade/v1/warm": {
                "post": _operation("Pre-pull images.", {200: _WARMED}, parameters=[], body="Warm"),
            },
            "/facade/v1/specs": {
                "get": _operation("List specs.", {200: _json("Specs", "Their ids.")}, parameters=[])
            },
            "/facade/v1/specs/{id}": {
                "get": _operation(
                    "Show a spec.", {200: _json("Spec", "As it was put.")}, 404, parameters=_SPEC
                ),
                "put": _operation(
                    "Put a spec.",
                    {201: {"description": "It is new."}, 204: {"description": "It was replaced."}},
                    404,
                    413,
                    422,
                    parameters=_SPEC,
                    body="Spec",
                ),
                "delete": _operation("Delete a spec.", {204: _DONE}, 404, parameters=_SPEC),
            },
        },
    }
