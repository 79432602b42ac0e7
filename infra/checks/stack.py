"""The files of OpenFaaS that no schema describes: stack.yml, which faas-cli reads without complaint, and faasd.yaml.

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
        if environment.get("CONFIG_FILE") not in targets:
            yield f"{name}: its configuration is not mounted"


def main(file):
    document = yaml.safe_load(Path(file).read_text())
    faults = list(compose(document) if "services" in document else stack(document))
    for fault in faults:
        print(fault)
    print("all is as OpenFaaS takes it" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
