"""Greets somebody: a handler for AWS Lambda's runtime for Python.

Takes JSON: {"name": "Ada"}. Gives JSON: {"greeting": "Hello, Ada!"}. With {"fail": true} it raises an error, which the
runtime reports with its type, message and stack trace.

Protocol lambda. The runtime asks for its calls at the address in AWS_LAMBDA_RUNTIME_API.
"""

import sys


def greet(event, context):
    """Handles one event: the payload, parsed; and what is known of the call."""
    left = context.get_remaining_time_in_millis()
    print(f"greeting for invocation {context.aws_request_id}, {left} ms left", file=sys.stderr)
    if event.get("fail"):
        raise RuntimeError("asked to fail")
    return {"greeting": f"Hello, {event['name']}!"}
