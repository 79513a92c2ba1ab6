#!/usr/bin/env python3
"""Works out the size of a picture that is to fit into a square.

Protocol exec, format envelope: {"context": {...}, "payload": ...} in, {"context": {"error", "logs"}, "payload"} out.
The payload is {"width": 4000, "height": 3000, "max": 800}, the result {"width": 800, "height": 600}.
A payload that makes no sense is an error in the envelope; the process still ends with exit status 0.
"""

import json
import sys


class InvalidSize(Exception):
    """The payload makes no sense."""


def plan(payload: object) -> dict[str, int]:
    sizes = []
    for field in ("width", "height", "max"):
        size = payload.get(field) if isinstance(payload, dict) else None
        # In Python a bool is an int.
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InvalidSize(f'"{field}" has to be a whole number of at least 1')
        sizes.append(size)
    width, height, limit = sizes
    longest = max(width, height)
    if longest <= limit:
        return {"width": width, "height": height}
    return {"width": max(1, width * limit // longest), "height": max(1, height * limit // longest)}


def main() -> int:
    try:
        envelope = json.load(sys.stdin.buffer)
        invocation = envelope["context"].get("invocation_id", "by hand")
        payload = envelope["payload"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        print(f"the input is not an envelope: {error!r}", file=sys.stderr)
        return 1
    logs = [f"invocation {invocation}"]
    failure, result = None, None
    try:
        result = plan(payload)
        logs.append(f"planned {result['width']} x {result['height']}")
    except InvalidSize as error:
        failure = {"type": type(error).__name__, "message": str(error)}
    print(json.dumps({"context": {"error": failure, "logs": {"stdout": logs, "stderr": []}}, "payload": result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
