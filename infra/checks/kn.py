"""Checks the real `kn`, in file mode and against a fake Kubernetes API: it accepts every function as rendered by
Kustomize, keeps all of its fields, changes nothing on a second run, and creates the PingSource in eventing/.

Usage: kn.py RENDERED
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
API = "/apis/serving.knative.dev/v1/namespaces/{namespace}/services/{name}"


def kept(wanted, there, path=""):
    """Returns what `there` lacks of `wanted`; kn may add fields."""
    if isinstance(wanted, dict):
        there = there if isinstance(there, dict) else {}
        return [lost for key, value in wanted.items() for lost in kept(value, there.get(key), f"{path}.{key}")]
    if isinstance(wanted, list):
        if not isinstance(there, list) or len(there) != len(wanted):
            return [path]
        return [lost for i, value in enumerate(wanted) for lost in kept(value, there[i], f"{path}.{i}")]
    return [] if wanted == there else [f"{path}: {wanted!r} became {there!r}"]


def kn(*words, **environment):
    """Runs kn and returns its errors."""
    said = subprocess.run(["kn", *words], env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    return [f"kn {' '.join(words)}: {said.stderr.strip()}"] if said.returncode else []


def files(service, name, namespace, file, folder):
    """Runs `kn service create --target` twice, and returns the faults."""
    words = ["service", "create", name, "-f", file, "--target", folder, "-n", namespace]
    faults = kn(*words) + kn(*words, "--force")
    made = Path(folder) / namespace / "ksvc" / f"{name}.yaml"
    return faults or kept(service, yaml.safe_load(made.read_text()), f"{name} as a file")


def start_api(folder):
    """Starts the fake API, and returns it with the path of a kubeconfig for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = subprocess.Popen([sys.executable, HERE / "api.py", str(port), folder])
    until = time.monotonic() + 30
    listening = False
    while not listening and time.monotonic() < until:
        with socket.socket() as client:
            listening = client.connect_ex(("127.0.0.1", port)) == 0
        time.sleep(0.05)
    config = Path(folder) / "config"
    config.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]}))
    return api, str(config)


def main(rendered):
    resources = [r for r in yaml.safe_load_all(Path(rendered).read_text()) if r]
    services = [r for r in resources if (r["apiVersion"], r["kind"]) == ("serving.knative.dev/v1", "Service")]
    ping = next(r for r in resources if r["kind"] == "PingSource")
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        api, config = start_api(folder)
        try:
            for service in services:
                name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
                file = str(Path(folder) / f"{name}.yaml")
                Path(file).write_text(yaml.safe_dump(service))
                faults += files(service, name, namespace, file, folder)
                for _ in range(2):
                    faults += kn("service", "apply", name, "-f", file, "-n", namespace, "--no-wait", KUBECONFIG=config)
            spec, namespace = ping["spec"], ping["metadata"]["namespace"]
            faults += kn("source", "ping", "create", ping["metadata"]["name"], "-n", namespace, "--schedule", spec["schedule"],
                         "--data", spec["data"], "--sink", f"ksvc:{spec['sink']['ref']['name']}", KUBECONFIG=config)
            stored = json.loads((Path(folder) / "stored.json").read_text())
            writes = (Path(folder) / "writes").read_text().splitlines()
        finally:
            api.kill()
            api.wait()
    for service in services:
        path = API.format(**service["metadata"])
        faults += kept(service, stored.get(path), f"{service['metadata']['name']} on the cluster")
    made = next((r for path, r in stored.items() if "pingsources" in path), {"spec": {}})["spec"]
    # kn has no option for time zone and content type, and adds the namespace to the sink.
    faults += kept({key: spec[key] for key in ("schedule", "data", "sink")}, made, "the ping")
    if len(writes) != len(services) + 1:
        faults.append(f"telling kn twice changed something: {writes}")
    for fault in faults:
        print(fault)
    print(f"kn takes {len(services)} functions, twice, and a ping, and keeps all that is in them")
    return 1 if faults or not services else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
