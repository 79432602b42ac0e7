"""The CloudEvents SDK as a client of the system, in both directions.

clients.py send http://HOST:PORT  sends users in all three modes; prints {"users": how many must be counted}.
clients.py read JSON              reads {"binary": {headers, body}, "structured": text, "batched": text} and prints,
                                  for each, the attributes and the data that the SDK finds.
"""

import json
import sys
import urllib.error
import urllib.request
import uuid

from cloudevents.core.bindings.http import (
    HTTPMessage,
    from_http_event,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.v1.event import CloudEvent

BATCHED = {"content-type": "application/cloudevents-batch+json"}
STRUCTURED = {"content-type": "application/cloudevents+json"}


def event(name, user_id=None):
    attributes = {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "type": "com.example.user",
        "source": "/python",
        "subject": name,
        "datacontenttype": "application/json",
        "myextension": "7",
    }
    return CloudEvent(attributes, {"id": user_id or str(uuid.uuid4()), "name": name})


def send(base):
    def post(path, headers, body):
        request = urllib.request.Request(base + path, data=body, headers=dict(headers), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def taken(path, headers, body, expected):
        status, answer = post(path, headers, body)
        assert status == expected, (path, headers, body, status, answer)
        return answer

    users = 0
    for name in ["binary", "Zoë", "日本語", "😀 100 %"]:
        for message in [to_binary_event(event(name)), to_structured_event(event(name))]:
            taken("/ingress/", message.headers, message.body, 202)
            users += 1
    batch = [json.loads(to_structured_event(event(f"batched {n}")).body) for n in range(5)]
    taken("/ingress/", BATCHED, json.dumps(batch).encode(), 202)
    users += 5
    for n, one in enumerate(batch):
        one["data"]["id"] = "no uuid" if n == 3 else str(uuid.uuid4())
    assert b"event 3" in taken("/ingress/", BATCHED, json.dumps(batch).encode(), 400)
    # Functions accept the same three modes as ingest does, and accept duplicates of a user.
    known = event("straight to both", "6f2c3a8e-55f3-4a0e-9c5e-0d6f7f0a9a11")
    for path in ["/function/count/", "/function/store/"]:
        for message in [to_binary_event(known), to_structured_event(known)]:
            taken(path, message.headers, message.body, 204)
        one = json.loads(to_structured_event(known).body)
        taken(path, BATCHED, json.dumps([one, one]).encode(), 204)
    users += 1
    return {"users": users}


def read(sent):
    def found(headers, body):
        one = from_http_event(HTTPMessage(headers, body))
        return {**one.get_attributes(), "data": one.get_data()}

    first = json.dumps(json.loads(sent["batched"])[0]).encode()
    return {
        "binary": found(sent["binary"]["headers"], sent["binary"]["body"].encode()),
        "structured": found(STRUCTURED, sent["structured"].encode()),
        "batched": found(STRUCTURED, first),
    }


what, given = sys.argv[1:]
print(json.dumps(send(given) if what == "send" else read(json.loads(given)), default=str))
