"""Finds defaults that an API server would add inside the lists of manifests. `kubectl apply` compares such lists as a
whole: if a default is omitted, it updates the object every time, and prints `configured` although nothing differs.

Usage: defaults.py SCHEMAS FILE…; SCHEMAS is a folder of {group}/{kind}_{version}.json or "-".
"""

import json
import sys
from pathlib import Path

# Defaults that are in no schema: those of Kubernetes' built-in kinds whose lists have no merge key, and those that
# Knative's webhook adds. Kind, path of the list, and the fields of its items; a parent marked `?` is optional.
KNOWN = [
    ("NetworkPolicy", "spec.ingress.*.ports", ["protocol"]),
    ("NetworkPolicy", "spec.egress.*.ports", ["protocol"]),
    ("Ingress", "spec.rules.*.http.paths", ["pathType"]),
    ("StatefulSet", "spec.volumeClaimTemplates", ["apiVersion", "kind", "spec.volumeMode", "status.phase"]),
    ("Service.serving.knative.dev", "spec.template.spec.containers",
     ["name", "readinessProbe.successThreshold", "readinessProbe.httpGet?.port", "livenessProbe?.httpGet?.port"]),
    ("Service.serving.knative.dev", "spec.template.spec.containers.*.ports", ["protocol"]),
    ("Service.serving.knative.dev", "spec.template.spec.containers.*.volumeMounts", ["readOnly"]),
]


def at(value, path):
    """Returns all values at a path; `*` matches each item of a list."""
    if not path:
        return [value]
    if path[0] == "*":
        return [found for item in value or [] for found in at(item, path[1:])]
    return at(value[path[0]], path[1:]) if isinstance(value, dict) and path[0] in value else []


def lacks(item, path):
    """Returns whether a field is missing; a name marked `?` is optional, together with its fields."""
    for name in path:
        if name.rstrip("?") not in item:
            return not name.endswith("?")
        item = item[name.rstrip("?")]
    return False


def by_schema(value, schema, path=""):
    """Yields the schema's defaults inside lists that `value` omits."""
    if isinstance(value, dict):
        for name, inner in (schema.get("properties") or {}).items():
            if name in value:
                yield from by_schema(value[name], inner, f"{path}.{name}")
            elif "default" in inner and "[]" in path:
                yield f"{path}.{name}"
    elif isinstance(value, list):
        for item in value:
            yield from by_schema(item, schema.get("items") or {}, f"{path}[]")


def missing(resource, schemas="-"):
    """Yields the fields that an API server would add so that every `kubectl apply` is a change."""
    group, _, version = resource["apiVersion"].rpartition("/")
    kinds = {resource["kind"] if not group.endswith(".dev") else "", f"{resource['kind']}.{group}"}
    for kind, path, fields in KNOWN:
        if kind in kinds:
            items = [item for found in at(resource, path.split(".")) for item in found or []]
            for field in fields:
                if any(lacks(item, field.split(".")) for item in items):
                    yield f"{path}[].{field.replace('?', '')}"
    schema = Path(schemas) / group / f"{resource['kind'].lower()}_{version}.json"
    if schemas != "-" and schema.exists():
        yield from by_schema({"spec": resource.get("spec")}, json.loads(schema.read_text()))


def main(schemas, files):
    import yaml

    wrong, count = set(), 0
    for file in files:
        for resource in yaml.safe_load_all(Path(file).read_text()):
            if resource:
                count += 1
                name = f"{resource['kind']} {resource['metadata']['name']}"
                wrong |= {f"{name} leaves the default of {field.lstrip('.')} to the server" for field in missing(resource, schemas)}
    for line in sorted(wrong):
        print(line)
    print(f"{count} resources state the defaults inside their lists" if not wrong else f"{len(wrong)} defaults are not stated")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
