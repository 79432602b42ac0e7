"""A fake Kubernetes API for the real `kn`: stores what it receives, and returns 404 for objects that do not exist.

Usage: api.py PORT FOLDER. No object ever becomes ready. FOLDER/stored.json contains all objects, FOLDER/writes one line
per change.
"""

import http.server
import json
import sys
from pathlib import Path


class Answer(http.server.BaseHTTPRequestHandler):
    folder, stored = Path("."), {}

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = self.path.partition("?")[0]
        status, answer = 200, self.stored.get(path)
        if self.command == "POST":
            answer = json.loads(body)
            answer["metadata"]["uid"] = "1"
            path += "/" + answer["metadata"]["name"]
            status = 409 if path in self.stored else 201
        elif self.command == "PUT":
            answer = json.loads(body)
        if answer is None or status == 409:
            reason = "AlreadyExists" if status == 409 else "NotFound"
            status = 409 if status == 409 else 404
            answer = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": status}
        elif self.command in ("POST", "PUT"):
            with open(self.folder / "writes", "a", encoding="utf-8") as writes:
                writes.write(f"{self.command} {path}\n")
            self.stored[path] = answer
            (self.folder / "stored.json").write_text(json.dumps(self.stored))
        payload = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PUT = do_PATCH = handle_any

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    Answer.folder = Path(sys.argv[2])
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
