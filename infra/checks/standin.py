"""A fake of a cluster's HTTP servers: the API of OpenFaaS' gateway; ingest, analytics and batch behind a gateway; and
the forwarder.

Usage: standin.py PORT FOLDER. FOLDER/requests has one line per request, FOLDER/functions.json what was deployed, and
FOLDER/users one line per user. FOLDER/broken lists faults: `forwarder` does not respond, `count` and `store` receive no
events, `dead` makes every event for store a dead letter, `remove` keeps removed functions. Stores nothing else, and
validates requests as OpenFaaS does.
"""

import base64
import http.server
import json
import sys
from pathlib import Path

PASSWORD = "Basic " + base64.b64encode(b"admin:admin").decode()


class Answer(http.server.BaseHTTPRequestHandler):
    folder = Path(".")

    def functions(self):
        file = self.folder / "functions.json"
        return json.loads(file.read_text()) if file.exists() else {"functions": {}, "secrets": {}}

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = self.path.partition("?")[0]
        with open(self.folder / "requests", "a", encoding="utf-8") as requests:
            requests.write(f"{self.command} {path}\n")
        status, answer = self.function(path, body) if not path.startswith("/system/") else self.system(path, body)
        payload = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def broken(self, name):
        file = self.folder / "broken"
        return file.exists() and name in file.read_text().split()

    def users(self, layer):
        """Returns the number of users in a layer (`count` or `store`), which is constant if it receives no events."""
        file = self.folder / "users"
        if self.broken(layer):
            return 5
        return len(set(file.read_text().split())) if file.exists() else 0

    def function(self, path, body):
        host = (self.headers.get("Host") or "").partition(".")[0]
        if path in ("/user", "/function/ingest/user") and self.command == "POST":
            if path == "/user" and host != "ingest":
                return 404, "no such host"
            with open(self.folder / "users", "a", encoding="utf-8") as users:
                users.write(json.loads(body)["id"] + "\n")
            return 201, body
        if path in ("/analytics", "/function/analytics/analytics"):
            if path == "/analytics" and host != "analytics":
                return 404, "no such host"
            count = self.users("count")
            points = [{"id": "x", "time": "2026-01-01T00:00:00Z", "userCount": count}] if count else []
            return 200, json.dumps({"longestNameUser": None, "userCount": points}, separators=(",", ":"))
        if path == "/" and host == "batch" and self.command == "POST" and self.headers.get("ce-id"):
            return 200, {"newUsers": 0, "users": self.users("store"), "longestNameUser": None, "full": False}
        if path == "/arrows" and not self.broken("forwarder"):
            dead = self.users("store") if self.broken("dead") else 0
            return 200, [{"name": f"log-to-{f}", "function": f, "lag": 0, "underWay": 0, "delivered": self.users(f),
                          "retried": 0, "dead": dead} for f in ("count", "store")]
        return 404, "no such path"

    def system(self, path, body):
        if self.headers.get("Authorization") != PASSWORD:
            return 401, "unauthorized access"
        state = self.functions()
        functions, secrets = state["functions"], state["secrets"]
        status, answer = 200, ""
        if path == "/system/functions" and self.command in ("POST", "PUT"):
            wanted = json.loads(body)
            name = wanted["service"]
            missing = [s for s in wanted.get("secrets") or [] if s not in secrets]
            if missing:
                return 400, f"unable to find secret(s): {missing}"
            if self.command == "PUT" and name not in functions:
                return 404, "not found"
            same = functions.get(name) == wanted
            functions[name] = wanted
            status = 202 if not same else 200
        elif path == "/system/functions" and self.command == "DELETE":
            if not self.broken("remove") and functions.pop(json.loads(body)["functionName"], None) is None:
                status = 404
        elif path == "/system/functions":
            answer = [self.described(f) for f in functions.values()]
        elif path.startswith("/system/function/"):
            name = path.rpartition("/")[2]
            status, answer = (200, self.described(functions[name])) if name in functions else (404, "not found")
        elif path == "/system/secrets" and self.command == "GET":
            answer = [{"name": name} for name in secrets]
        elif path == "/system/secrets" and self.command == "DELETE":
            secrets.pop(json.loads(body)["name"], None)
        elif path == "/system/secrets":
            wanted = json.loads(body)
            if self.command == "POST" and wanted["name"] in secrets:
                return 409, "there is such a secret"
            secrets[wanted["name"]] = wanted.get("value") or base64.b64decode(wanted.get("rawValue", "")).decode()
            status = 202
        (self.folder / "functions.json").write_text(json.dumps(state))
        return status, answer

    def described(self, wanted):
        never = self.folder / "never"
        replicas = 0 if never.exists() and wanted["service"] in never.read_text().split() else 1
        return {"name": wanted["service"], "image": wanted["image"], "replicas": 1, "availableReplicas": replicas,
                "invocationCount": 0, "labels": wanted.get("labels") or {}, "annotations": wanted.get("annotations") or {}}

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    Answer.folder = Path(sys.argv[2])
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
