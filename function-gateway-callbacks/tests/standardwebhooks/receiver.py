#!/usr/bin/env python3
"""Reads a request, and says whether it is accepted: by the reference library, and by the lines of the page that is named."""

import json
import runpy
import sys

from standardwebhooks import Webhook, WebhookVerificationError

request = json.load(sys.stdin)
secret, headers, body = request["secret"], request["headers"], request["body"].encode()


def accepts(verify):
    try:
        verify()
    except (WebhookVerificationError, ValueError):
        return False
    return True


page = runpy.run_path(sys.argv[1])
by_library = accepts(lambda: Webhook(secret).verify(body, headers))
by_page = accepts(lambda: page["verify"](secret, headers, body))
json.dump([by_library, by_page], sys.stdout)
