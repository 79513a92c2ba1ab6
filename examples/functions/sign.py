#!/usr/bin/env python3
"""Signs the payload with a secret.

Protocol exec, format raw. Takes any bytes, and the secret in the environment variable SIGNING_KEY.
Gives JSON: {"algorithm": "hmac-sha256", "signature": "<hex>"}.
Without the secret it says so on standard error and ends with exit status 1.
"""

import hashlib
import hmac
import json
import os
import sys


def main() -> int:
    payload = sys.stdin.buffer.read()
    key = os.environb.get(b"SIGNING_KEY", b"")
    if not key:
        print("the secret SIGNING_KEY is missing", file=sys.stderr)
        return 1
    signature = hmac.new(key, payload, hashlib.sha256).hexdigest()
    print(json.dumps({"algorithm": "hmac-sha256", "signature": signature}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
