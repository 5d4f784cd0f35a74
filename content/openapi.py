"""The description of the agent's API (OpenAPI 3.1), served at ``/openapi.json`` and tested against."""

from dataclasses import fields
from typing import Any

from content.io_limits.limiter import IoLimits
from content.requests import RATE_FIELDS

_NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$"}
_NUMBER = {"type": ["integer", "null"], "minimum": 0, "maximum": 2**63 - 1}
_RATE = {"type": ["integer", "null"], "minimum": 1, "maximum": 2**63 - 1}
_ID = {"type": ["integer", "null"], "minimum": 0, "maximum": 2**32 - 1}
_SNAPSHOT_ID = {"type": "string", "pattern": "^\\d{8}T\\d{6}\\.\\d{3}Z-[0-9a-f]{8}$"}
_TEXT = {"type": "string", "minLength": 1, "pattern": "^[^\\u0000]+$"}
_PATTERNS = {"type": "array", "maxItems": 1000, "items": {"type": "string", "pattern": "^[^\\u0000]*$"}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(name)}}}


_PROBLEM = {"description": "Why not.", "content": {"application/problem+json": {"schema": _ref("Problem")}}}


def _operation(
    summary: str,
    answers: dict[str, Any],
    *problems: int,
    body: str | None = None,
    parameters: tuple[dict[str, Any], ...] = (),
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "summary": summary,
        "operationId": summary.lower().rstrip(".").replace(" ", "_").replace("'", ""),
        "responses": answers | {str(status): _PROBLEM for status in (401, 403, 500, 503, *problems)},
    }
    if parameters:
        made["parameters"] = list(parameters)
    if body is not None:
        made["requestBody"] = {"content": {"application/json": {"schema": _ref(body)}}}
    return made


def _path(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}


_WORKSPACE = [_path("owner", _NAME), _path("id", _NAME)]
_JOB = [_path("job_id", {"type": "string", "pattern": "^[0-9a-f]{16}$"})]
_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A repeated request with this key gets the first one's job.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[A-Za-z0-9._-]+$"},
}


def document() -> dict[str, Any]:
    """A new description; JSON-ready."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "lapstrake content service", "version": "1"},
        "security": [{"bearer": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }


def _paths() -> dict[str, Any]:
    workspace = "/v1/workspaces/{owner}/{id}"
    started = {"202": _json("Job", "Queued; Location names the job.")}
    schedule = {"200": _json("Schedule", "A final backup that is done ends it as well.")}
    io_limits = {"200": _json("IoLimits", "In force, and read back.")}
    limits = {"200": _json("Limits", "Asked for now; a field that is left out stays, null lifts.")}
    return {
        f"{workspace}/backups": {
            "parameters": _WORKSPACE,
            "post": _operation(
                "Start a backup.", started, 400, 404, 409, body="BackupRequest", parameters=(_IDEMPOTENCY,)
            ),
        },
        f"{workspace}/restores": {
            "parameters": _WORKSPACE,
            "post": _operation(
                "Start a restore.", started, 400, 404, 409, body="RestoreRequest", parameters=(_IDEMPOTENCY,)
            ),
        },
        f"{workspace}/initializations": {
            "parameters": _WORKSPACE,
            "post": _operation(
                "Start a workspace.",
                started,
                400,
                404,
                409,
                body="InitializationRequest",
                parameters=(_IDEMPOTENCY,),
            ),
        },
        f"{workspace}/schedule": {
            "parameters": _WORKSPACE,
            "get": _operation("Show the periodic backups of a workspace.", schedule, 400, 404),
            "put": _operation(
                "Back a workspace up periodically.", schedule, 400, 507, body="ScheduleRequest"
            ),
            "delete": _operation(
                "End the periodic backups of a workspace.", {"204": {"description": "Ended."}}, 400, 507
            ),
        },
        "/v1/schedules": {
            "get": _operation("List the periodic backups.", {"200": _json("Schedules", "Of this node.")})
        },
        f"{workspace}/snapshots": {
            "parameters": _WORKSPACE,
            "get": _operation(
                "List snapshots.", {"200": _json("Snapshots", "Oldest first.")}, 400, 404, 502, 507
            ),
        },
        f"{workspace}/snapshots/{{snapshot_id}}": {
            "parameters": [*_WORKSPACE, _path("snapshot_id", {"type": "string", "minLength": 1})],
            "delete": _operation(
                "Delete a snapshot.", {"204": {"description": "Gone."}}, 400, 404, 409, 502, 507
            ),
        },
        f"{workspace}/snapshots/{{snapshot_id}}/download": {
            "parameters": [*_WORKSPACE, _path("snapshot_id", {"type": "string", "minLength": 1})],
            "get": _operation(
                "Make a link to a snapshot's tar.",
                {"200": _json("Link", "The tar can be fetched there without a token.")},
                400,
                404,
                502,
                507,
                parameters=(
                    {
                        "name": "expires_s",
                        "in": "query",
                        "schema": {"type": "integer", "minimum": 1, "maximum": 604_800},
                    },
                ),
            ),
        },
        f"{workspace}/safety": {
            "parameters": _WORKSPACE,
            "get": _operation(
                "Ask whether the tree may be deleted.",
                {"200": _json("Safety", "True only when the latest snapshot holds the tree as it is.")},
                400,
                404,
                502,
                507,
                parameters=({"name": "path", "in": "query", "schema": _TEXT},),
            ),
        },
        "/v1/jobs": {"get": _operation("List jobs.", {"200": _json("Jobs", "Oldest first.")})},
        "/v1/jobs/{job_id}": {
            "parameters": _JOB,
            "get": _operation("Show a job.", {"200": _json("Job", "As it is now.")}, 404),
            "delete": _operation("Cancel a job.", {"202": _json("Job", "It will end.")}, 404),
        },
        "/v1/jobs/{job_id}/events": {
            "parameters": _JOB,
            "get": _operation("Watch a job.", {"200": _EVENTS}, 404),
        },
        "/v1/jobs/{job_id}/limits": {
            "parameters": _JOB,
            "get": _operation("Show a job's rate limits.", limits, 404),
            "patch": _operation("Change a job's rate limits.", limits, 400, 404, body="Limits"),
        },
        f"{workspace}/io-limits": {
            "parameters": _WORKSPACE,
            "get": _operation("Show the limits on a workspace's cgroup.", io_limits, 400, 404),
            "put": _operation("Limit a workspace's cgroup.", io_limits, 400, 404, 507, body="IoLimits"),
            "delete": _operation(
                "Lift the limits on a workspace's cgroup.",
                {"204": {"description": "Lifted; now the workspace may be killed."}},
                400,
                404,
                507,
            ),
        },
        "/v1/node": {
            "get": _operation("Show how the node is.", {"200": _json("Node", "With why it is not ready.")})
        },
        "/v1/limits": {
            "get": _operation("Show the rate limits.", limits),
            "patch": _operation("Change the rate limits.", limits, 400, body="Limits"),
        },
    }


_EVENTS = {
    "description": "Events `progress`, and `end` as the last; data is a Job.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def _kind(name: str, required: dict[str, Any] | None = None, optional: dict[str, Any] | None = None) -> Any:
    return _object({"kind": {"const": name}} | (required or {}), optional)


def _initializers() -> dict[str, Any]:
    snapshot = {"snapshot_id": _SNAPSHOT_ID}
    other = {"workspace": {"type": "string", "description": "OWNER/ID; the workspace itself if left out."}}
    url = {"type": "string", "format": "uri", "pattern": "^[a-z]+://"}
    git = {
        "branch": {"type": "string", "minLength": 1},
        "commit": {"type": "string", "pattern": "^([0-9a-f]{40}|[0-9a-f]{64})$"},
        "depth": {"type": ["integer", "null"], "minimum": 1},
        "submodules": {"type": "boolean"},
        "authorization": {
            "type": "string",
            "minLength": 1,
            "description": "Value of the header of that name, for the URL's origin only; it is not kept.",
        },
        "target": _TEXT,
    }
    file = _object(
        {"url": url, "path": _TEXT, "digest": {"type": "string", "pattern": "^sha(256|512):[0-9a-f]+$"}},
        {"mode": {"type": "integer", "minimum": 0, "maximum": 0o777}},
    )
    steps = {"type": "array", "minItems": 1, "maxItems": 20, "items": _ref("Initializer")}
    kinds = [
        _kind("empty"),
        _kind("backup"),
        _kind("snapshot", snapshot, other),
        _kind("git", {"url": url}, git),
        _kind("download", {"files": {"type": "array", "minItems": 1, "maxItems": 1000, "items": file}}),
        _kind("prebuild", {"snapshot": _object(snapshot, other), "git": _object({"url": url}, git)}),
        _kind("composite", {"initializers": steps}),
    ]
    return {
        "Initializer": {
            "description": "Used only when the workspace has no backup; a backup always wins.",
            "oneOf": kinds,
        }
    }


def _schemas() -> dict[str, Any]:
    number, text, anything = {"type": "number"}, {"type": "string"}, {"type": ["object", "null"]}
    maybe = {"type": ["number", "null"]}
    return {
        "Problem": {
            "type": "object",
            "properties": {"type": text, "title": text, "status": {"type": "integer"}, "detail": text},
            "required": ["type", "title", "status", "detail"],
        },
        "BackupRequest": _object(
            {},
            {
                "path": _TEXT,
                "exclude": _PATTERNS,
                "incarnation": _NUMBER,
                "kind": {"enum": ["final", "periodic"]},
            },
        ),
        "RestoreRequest": _object(
            {},
            {
                "path": _TEXT,
                "snapshot_id": _SNAPSHOT_ID,
                "only": _PATTERNS,
                "replace": {"type": "boolean"},
            },
        ),
        "InitializationRequest": _object(
            {"initializer": _ref("Initializer")}, {"path": _TEXT, "uid": _ID, "gid": _ID}
        ),
        **_initializers(),
        "ScheduleRequest": _object(
            {},
            {
                "path": _TEXT,
                "exclude": _PATTERNS,
                "incarnation": _NUMBER,
                "every_s": {"type": ["integer", "null"], "minimum": 1, "maximum": 604_800},
            },
        ),
        "Schedule": _object(
            {
                "workspace": text,
                "path": text,
                "exclude": _PATTERNS,
                "incarnation": _NUMBER,
                "every_s": number,
            }
        ),
        "Node": _object(
            {
                "ready": {"type": "boolean"},
                "reasons": {"type": "object", "additionalProperties": text},
                "free_bytes": maybe,
                "jobs_running": number,
                "jobs_queued": number,
                "periodic_workspaces": number,
                "disk_held_to_share": maybe,
                "disk_held_to_bytes_s": maybe,
            }
        ),
        "IoLimits": _object({"cgroup": _TEXT}, {field.name: _RATE for field in fields(IoLimits)}),
        "Link": _object({"url": text, "expires_s": number, "bytes": number}),
        "Schedules": _object({"schedules": {"type": "array", "items": _ref("Schedule")}}),
        "Job": _object(
            dict.fromkeys(("id", "kind", "workspace", "phase"), text)
            | {"state": {"enum": ["queued", "running", "done", "failed", "cancelled"]}}
            | dict.fromkeys(("bytes", "entries", "rate_bytes_s", "created_s"), number)
            | dict.fromkeys(("total_bytes", "total_entries", "eta_s", "started_s", "ended_s"), maybe)
            | {"result": anything, "error": anything}
        ),
        "Jobs": _object({"jobs": {"type": "array", "items": _ref("Job")}}),
        "Snapshots": _object(
            {
                "workspace": text,
                "incarnation": {"type": "integer"},
                "snapshots": {"type": "array", "items": {"type": "object"}},
            }
        ),
        "Safety": _object(
            {
                "safe_to_delete": {"type": "boolean"},
                "snapshot_id": {"type": ["string", "null"]},
                "reason": text,
            }
        ),
        "Limits": _object({}, dict.fromkeys(RATE_FIELDS.values(), _RATE)),
    }
