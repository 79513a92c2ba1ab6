#!/usr/bin/env python3
"""Counts down, a line each second: for trying out streaming, and a function that is a web server.

Protocol http, with nothing but Python's own library. GET /3 gives the lines 3, 2 and 1 as they are counted, then "lift-off".
"""

import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_SECONDS = 60


class Countdown(BaseHTTPRequestHandler):
    # Answers whose length is not known come in chunks.
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        text = self.path.split("?")[0].strip("/") or "3"
        if not text.isdecimal() or int(text) > MAX_SECONDS:
            return self.refuse(f"the path is a whole number of seconds, at most {MAX_SECONDS}\n")
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for left in range(int(text), 0, -1):
            self.chunk(f"{left}\n")
            time.sleep(1)
        self.chunk("lift-off\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def refuse(self, reason: str) -> None:
        body = reason.encode()
        self.send_response(400)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Countdown).serve_forever()
