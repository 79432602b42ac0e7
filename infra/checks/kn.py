"""The real `kn` in its file mode: it takes every function as Kustomize renders it, and keeps all that is in it.

Usage: kn.py RENDERED. Sources have no file mode; docs/deploy.md says what is done by hand for them.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import yaml


def kept(wanted, there, path=""):
    """What of `wanted` is not in `there`; kn may add."""
    if isinstance(wanted, dict):
        there = there if isinstance(there, dict) else {}
        return [lost for key, value in wanted.items() for lost in kept(value, there.get(key), f"{path}.{key}")]
    if isinstance(wanted, list):
        if not isinstance(there, list) or len(there) != len(wanted):
            return [path]
        return [lost for i, value in enumerate(wanted) for lost in kept(value, there[i], f"{path}.{i}")]
    return [] if wanted == there else [f"{path}: {wanted!r} became {there!r}"]


def main(rendered):
    services = [r for r in yaml.safe_load_all(Path(rendered).read_text())
                if (r["apiVersion"], r["kind"]) == ("serving.knative.dev/v1", "Service")]
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for service in services:
            name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
            file = Path(folder) / f"{name}.yaml"
            file.write_text(yaml.safe_dump(service))
            words = ["kn", "service", "create", name, "-f", str(file), "--target", folder, "-n", namespace]
            for command in (words, [*words, "--force"]):
                said = subprocess.run(command, capture_output=True, text=True, check=False)
                if said.returncode:
                    faults.append(f"{name}: {said.stderr.strip()}")
            made = Path(folder) / namespace / "ksvc" / f"{name}.yaml"
            if made.exists():
                faults += [f"{name}: {lost}" for lost in kept(service, yaml.safe_load(made.read_text()))]
    for fault in faults:
        print(fault)
    print(f"kn takes {len(services)} functions, twice, and keeps all that is in them")
    return 1 if faults or not services else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
