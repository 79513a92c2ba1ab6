#!/usr/bin/env python3
"""Reads and writes events by the CloudEvents SDK for Python: tasks come as JSON on stdin, their results go to stdout."""

import base64
import json
import sys
from datetime import datetime

from cloudevents.core.bindings import http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

BATCH = "application/cloudevents-batch+json"


def text_of(value):
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return json.dumps(value) if isinstance(value, (bool, int)) else str(value)


def tell(event):
    data = event.get_data()
    attributes = event.get_attributes()
    if isinstance(data, bytes):
        data = {"bytes": base64.b64encode(data).decode()}
    elif isinstance(data, str) and "json" not in attributes.get("datacontenttype", ""):
        data = {"text": data}
    elif data is not None:
        data = {"json": data}
    return {"attributes": {name: text_of(value) for name, value in attributes.items()}, "data": data}


def make(told):
    attributes = dict(told["attributes"])
    if "time" in attributes:
        attributes["time"] = datetime.fromisoformat(attributes["time"].replace("Z", "+00:00"))
    data = told["data"] or {}
    if "bytes" in data:
        return CloudEvent(attributes, base64.b64decode(data["bytes"]))
    return CloudEvent(attributes, data.get("text", data.get("json")))


def read(task):
    body = base64.b64decode(task["body"])
    if task["mode"] == "batch":
        # The SDK has no batches: each event goes through its JSON format.
        return [tell(JSONFormat().read(None, json.dumps(event))) for event in json.loads(body)]
    return [tell(http.from_http_event(http.HTTPMessage(task["headers"], body)))]


def write(task):
    events = [make(event) for event in task["events"]]
    if task["mode"] == "batch":
        body = b"[" + b",".join(JSONFormat().write(event) for event in events) + b"]"
        message = http.HTTPMessage({"content-type": BATCH}, body)
    elif task["mode"] == "structured":
        message = http.to_structured_event(events[0])
    else:
        message = http.to_binary_event(events[0])
    return {"headers": message.headers, "body": base64.b64encode(message.body).decode()}


def result(task):
    try:
        return {"ok": read(task) if task["do"] == "read" else write(task)}
    except Exception as error:
        return {"error": repr(error)}


if __name__ == "__main__":
    json.dump([result(task) for task in json.load(sys.stdin)], sys.stdout)
