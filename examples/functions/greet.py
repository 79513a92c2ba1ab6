#!/usr/bin/env python3
"""Greets somebody.

Protocol exec, format raw. Takes JSON: {"name": "Ada"}. Gives JSON: {"greeting": "Hello, Ada!"}.
Without a name it says so on standard error and ends with exit status 1.
"""

import json
import sys


def main() -> int:
    try:
        payload = json.load(sys.stdin.buffer)
    except ValueError as error:
        print(f"the payload is not JSON: {error}", file=sys.stderr)
        return 1
    name = payload.get("name") if isinstance(payload, dict) else None
    if not isinstance(name, str) or not name.strip():
        print('the payload needs a "name", a text that is not empty', file=sys.stderr)
        return 1
    print(json.dumps({"greeting": f"Hello, {name.strip()}!"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
