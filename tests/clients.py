"""Sends users to the system with CloudEvents' own SDK in all three modes, then reads what functions are sent.

Usage: clients.py http://HOST:PORT. Prints {"users": N} at the end; ends with an error where anything differs.
"""

import json
import sys
import urllib.error
import urllib.request
import uuid

from cloudevents.v1.http import CloudEvent, from_http, to_binary, to_structured

BASE = sys.argv[1]


def post(path, headers, body):
    request = urllib.request.Request(BASE + path, data=body, headers=dict(headers), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def event(name):
    user = {"id": str(uuid.uuid4()), "name": name}
    attributes = {
        "type": "com.example.user",
        "source": "/python",
        "subject": name,
        "datacontenttype": "application/json",
        "myextension": "7",
    }
    return CloudEvent(attributes, user)


users = 0
for name in ["binary", "Zoë", "日本語", "😀"]:
    headers, body = to_binary(event(name))
    # The SDK writes a header's text as it is; what a header cannot hold is percent-encoded (HTTP binding, 3.1.3.2).
    headers = {key: urllib.request.quote(value, safe="/:+;=.-, ") for key, value in headers.items()}
    status, answer = post("/ingress/", headers, body)
    assert status == 202, (name, status, answer)
    users += 1
    headers, body = to_structured(event(name))
    status, answer = post("/ingress/", headers, body)
    assert status == 202, (name, status, answer)
    users += 1

batch = [json.loads(to_structured(event(f"batched {n}"))[1]) for n in range(5)]
batched = {"content-type": "application/cloudevents-batch+json"}
status, answer = post("/ingress/", batched, json.dumps(batch).encode())
assert status == 202, (status, answer)
users += 5

batch[3]["data"] = {"id": "no uuid", "name": "bad"}
for n in range(5):
    if n != 3:
        batch[n]["data"]["id"] = str(uuid.uuid4())
status, answer = post("/ingress/", batched, json.dumps(batch).encode())
assert status == 400 and b"event 3" in answer, (status, answer)

# Functions take the same three modes as ingest does.
for path in ["/function/count/", "/function/store/"]:
    known = event("straight to both")
    known.data["id"] = "6f2c3a8e-55f3-4a0e-9c5e-0d6f7f0a9a11"
    for headers, body in [to_binary(known), to_structured(known)]:
        status, answer = post(path, headers, body)
        assert status == 204, (path, status, answer)
    one = json.loads(to_structured(known)[1])
    status, answer = post(path, batched, json.dumps([one, one]).encode())
    assert status == 204, (path, status, answer)
users += 1

# The other direction: the SDK reads a batch's event and a binary request as this system's own parts write them.
headers, body = to_binary(event("there and back"))
assert from_http(headers, body)["subject"] == "there and back"
print(json.dumps({"users": users}))
