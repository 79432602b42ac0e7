"""Checks the files of OpenFaaS that have no schema: stack.yml, whose unknown fields faas-cli ignores, faasd.yaml, and
the systemd unit.

Usage: stack.py FILE
"""

import re
import sys
from pathlib import Path

import yaml

FUNCTIONS = {"ingest", "count", "store", "batch", "analytics"}
FIELDS = {"image", "skip_build", "readonly_root_filesystem", "environment", "secrets", "labels", "annotations", "requests",
          "limits", "lang", "handler", "constraints"}
SECRETS = "/var/openfaas/secrets/"
# The folder in which faasd stores the secrets of `faas-cli secret`.
KEPT = "/var/lib/faasd-provider/secrets/openfaas-fn/"
INTERNAL = {"count", "store", "batch"}
# Functions that read the views, and so need the CA certificate of their servers.
VIEWS = {"count", "analytics"}
# Timeout of a function's drain, in seconds.
DRAIN = 60


def stack(document):
    functions = document["functions"]
    if set(functions) != FUNCTIONS:
        yield f"there must be the functions {sorted(FUNCTIONS)}, there are {sorted(functions)}"
    for name, function in functions.items():
        for field in set(function) - FIELDS:
            yield f"{name}: faas-cli would ignore the field {field}"
        image = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(function.get("image")))
        if image != f"lambda-architecture/{name}:latest":
            yield f"{name}: runs the image {image}"
        if function.get("readonly_root_filesystem") is not True:
            yield f"{name}: may write where it runs"
        if function.get("skip_build") is not True:
            yield f"{name}: would be built"
        for key, value in (function.get("environment") or {}).items():
            if value.startswith(SECRETS) and value.removeprefix(SECRETS) not in function.get("secrets", []):
                yield f"{name}: {key} reads a secret that it does not name"
        environment = function.get("environment") or {}
        if environment.get("CONFIG_FILE") != f"{SECRETS}lambda-{name}":
            yield f"{name}: its configuration is not the secret lambda-{name}"
        own = {f"lambda-{name}"} | ({"cassandra-ca"} if name in VIEWS else set()) | ({"event-token"} if name in INTERNAL else set())
        for secret in sorted(set(function.get("secrets", [])) - own):
            yield f"{name}: gets the secret {secret}, which is not its own"
        if ("EVENT_TOKEN_FILE" in environment) != (name in INTERNAL):
            yield f"{name}: " + ("anybody may call it" if name in INTERNAL else "asks its users for the forwarder's token")
        for key in ("write_timeout", "grace_period"):
            if not int(str(environment.get(key, "0")).removesuffix("s")) > DRAIN:
                yield f"{name}: {key} is below its drain of {DRAIN} s"
        for key, path in (("health", "/_/health"), ("ready", "/_/ready")):
            if function.get("annotations", {}).get(f"com.openfaas.{key}.http.path") != path:
                yield f"{name}: is not asked at {path}"
        if not 1 <= int(function.get("labels", {}).get("com.openfaas.scale.max", 0)) <= 5:
            yield f"{name}: Community Edition has one to five replicas"
        if "memory" not in (function.get("limits") or {}):
            yield f"{name}: has no limit of memory"


def compose(document):
    for name, service in document["services"].items():
        if not re.fullmatch(rf"docker\.io/lambda-architecture/{name}:\S+", service.get("image", "")):
            yield f"{name}: faasd wants a whole image name, not {service.get('image')}"
        environment = dict(line.split("=", 1) for line in service["environment"])
        targets = {volume["target"] for volume in service.get("volumes", [])}
        if environment.get("GATEWAY_URL") != "http://gateway:8080":
            yield f"{name}: does not know the gateway"
        for key in ("CONFIG_FILE", "EVENT_TOKEN_FILE"):
            if environment.get(key) not in targets:
                yield f"{name}: the file of {key} is not mounted"
        for volume in service.get("volumes", []):
            if volume["target"].rpartition("/")[2] not in (f"lambda-{name}", "event-token"):
                yield f"{name}: gets {volume['target']}, which is not its own"
            if volume["source"] != KEPT + volume["target"].rpartition("/")[2]:
                yield f"{name}: {volume['source']} is not where faasd keeps the secret"


def unit(text):
    """Checks the forwarder's systemd unit."""
    lines = [line.partition("=")[::2] for line in text.splitlines() if "=" in line and not line.startswith("#")]
    environment = dict(value.split("=", 1) for key, value in lines if key == "Environment")
    credentials = dict(value.split(":", 1) for key, value in lines if key == "LoadCredential")
    if ("Restart", "always") not in lines:
        yield "it stays stopped when it dies"
    if not int(dict(lines).get("TimeoutStopSec", 0)) > DRAIN:
        yield f"it is killed in its drain of {DRAIN} s"
    for key, name in (("CONFIG_FILE", "lambda-forwarder"), ("EVENT_TOKEN_FILE", "event-token")):
        file = environment.get(key, "").removeprefix("/run/credentials/lambda-forwarder.service/")
        if credentials.get(file) != KEPT + name:
            yield f"{key} is not the secret {name}"


def main(file):
    text = Path(file).read_text()
    if file.endswith(".service"):
        faults = list(unit(text))
    else:
        document = yaml.safe_load(text)
        faults = list(compose(document) if "services" in document else stack(document))
    for fault in faults:
        print(fault)
    print("all is as OpenFaaS takes it" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
