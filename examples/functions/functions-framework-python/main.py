"""Greets somebody: an HTTP function for Google's Functions Framework.

Takes JSON: {"name": "Ada"}. Gives JSON: {"greeting": "Hello, Ada!"}. With {"fail": true} it raises an error, of which
the framework makes a response with the status 500.

Protocol http. The framework listens on the port in PORT and has no path of its own to ask if it is ready.
"""

import sys

import functions_framework


@functions_framework.http
def greet(request):
    """Handles one request: a flask.Request in, anything that Flask takes for a response out."""
    payload = request.get_json()
    # Standard error, since Python keeps what is printed to a pipe on standard output until there is more of it.
    print(f"greeting for invocation {request.headers.get('x-function-invocation-id')}", file=sys.stderr)
    if payload.get("fail"):
        raise RuntimeError("asked to fail")
    return {"greeting": f"Hello, {payload['name']}!"}
