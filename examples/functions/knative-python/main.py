#!/usr/bin/env python3
"""Greets somebody: an HTTP function for Knative's runtime for Python.

Takes JSON: {"name": "Ada"}. Gives JSON: {"greeting": "Hello, Ada!"}. With {"fail": true} it raises an error, of which
the runtime makes a response with the status 500 that breaks off (func-python 0.8.1): a function that has something to
say about an error catches it and answers for itself.

Protocol http. The runtime listens on the address in LISTEN_ADDRESS, such as 127.0.0.1:8080, and is ready when
/health/readiness says so.
"""

import json
import logging

import func_python.http


async def handle(scope, receive, send):
    """Handles one request, an ASGI application in itself."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    payload = json.loads(body)
    headers = dict(scope["headers"])
    logging.info("greeting for invocation %s", headers.get(b"x-function-invocation-id", b"").decode())
    if payload.get("fail"):
        raise RuntimeError("asked to fail")
    answer = json.dumps({"greeting": f"Hello, {payload['name']}!"}).encode()
    content_type = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": content_type})
    await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    func_python.http.serve(handle)
