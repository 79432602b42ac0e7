"""Checks every resource against its schema: Kubernetes' built-in kinds, and custom kinds if there are schemas.

Usage: schemas.py SCHEMAS FILE…; SCHEMAS is a folder of {group}/{kind}_{version}.json or "-". Does not check names.
"""

import json
import subprocess
import sys

import kubernetes_validate
import yaml

from report import not_run

KUBERNETES = "1.34"
# The API versions of Kubernetes' built-in kinds.
CORE = ("v1", "apps/v1", "batch/v1", "networking.k8s.io/v1", "policy/v1")


def core(resource):
    try:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = ".".join(str(part) for part in error.path)
        return [f"{path or '(top)'}: {error.message}"]
    return []


def custom(resources, schemas):
    """Yields kubeconform's messages, prefixed with the resource's name."""
    for resource in resources:
        if resource["kind"] == "InnoDBCluster":
            # Its schema limits the length of the name, and thereby seems to allow no other metadata.
            resource["metadata"] = {"name": resource["metadata"]["name"]}
    location = f"{schemas}/{{{{.Group}}}}/{{{{.ResourceKind}}}}_{{{{.ResourceAPIVersion}}}}.json"
    said = subprocess.run(
        ["kubeconform", "-strict", "-output", "json", "-schema-location", location, "-"],
        input=yaml.safe_dump_all(resources), capture_output=True, text=True, check=False,
    )
    for wrong in json.loads(said.stdout or "{}").get("resources") or [{"kind": "", "name": "", "msg": said.stderr}]:
        yield f"{wrong['kind']} {wrong['name']}: {wrong['msg']}"


def main(schemas, files):
    wrong, count, skipped = [], 0, set()
    for file in files:
        with open(file, encoding="utf-8") as text:
            resources = [r for r in yaml.safe_load_all(text) if r]
        others = []
        for resource in resources:
            name = f"{resource['kind']} {resource['metadata']['name']}"
            if resource["apiVersion"] in CORE:
                wrong += [f"{file}: {name}: {why}" for why in core(resource)]
                count += 1
            elif schemas == "-":
                skipped.add(resource["kind"])
            else:
                others.append(resource)
        count += len(others)
        if others:
            summary = list(custom(others, schemas))
            wrong += [f"{file}: {why}" for why in summary if why.strip(" :")]
    for line in wrong:
        print(line)
    if skipped:
        not_run("schemas", f"no schemas of {', '.join(sorted(skipped))} are at hand")
    print(f"{count} resources fit their schemas" if not wrong else f"{len(wrong)} faults in {count} resources")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
