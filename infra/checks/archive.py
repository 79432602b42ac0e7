"""Checks that an image built without an engine has its fully qualified name in every format, and that the same files
give the same bytes. If skopeo is available, it must read the archive in both formats.

Usage: archive.py ARCHIVE_SH
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from report import not_run

NAMES = {
    "lambda-architecture/count:latest": "docker.io/lambda-architecture/count:latest",
    "dev.local/lambda-architecture/count:dev": "dev.local/lambda-architecture/count:dev",
    "localhost:5000/la/count:1.2": "localhost:5000/la/count:1.2",
}


def archive(script, folder, reference, file):
    """Builds an archive of a small tree and returns its path."""
    tree = folder / "tree"
    tree.mkdir(exist_ok=True)
    (tree / "function").write_text("a program\n")
    environment = {**os.environ, "VERSION": "1.0.0", "REVISION": "r", "CREATED": "2026-01-01T00:00:00Z", "TARGETARCH": "amd64"}
    out = folder / file
    subprocess.run([script, "count", tree, out, reference], env=environment, check=True)
    return out


def names(file):
    """Returns the names that kind and containerd, skopeo and podman, and docker read; and missing entries."""
    with tarfile.open(file) as tar:
        read = lambda name: json.load(tar.extractfile(name))
        try:
            index = read("./index.json")["manifests"][0]["annotations"]
            docker = read("./manifest.json")[0]
        except KeyError as missing:
            return [], [str(missing)]
        entries = {member.name.removeprefix("./") for member in tar}
        lost = [path for path in [docker["Config"], *docker["Layers"]] if path not in entries]
    return [index.get("io.containerd.image.name"), index.get("org.opencontainers.image.ref.name"), *docker["RepoTags"]], lost


def skopeo(file, folder):
    """Yields skopeo's objections to an archive."""
    for kind in ("oci-archive", "docker-archive"):
        to = folder / kind
        shutil.rmtree(to, ignore_errors=True)
        said = subprocess.run(["skopeo", "copy", "--insecure-policy", "--quiet", f"{kind}:{file}", f"dir:{to}"],
                              capture_output=True, text=True, check=False)
        if said.returncode or not (to / "manifest.json").exists():
            yield f"skopeo does not take it as {kind}: {said.stderr.strip()}"
            continue
        image = json.loads(subprocess.run(["skopeo", "inspect", "--config", f"dir:{to}"],
                                          capture_output=True, text=True, check=True).stdout)
        if image["config"]["Entrypoint"] != ["/function"] or image["config"]["User"] != "65532:65532":
            yield f"as {kind} it would run {image['config']}"


def main(script):
    faults = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for reference, whole in NAMES.items():
            file = archive(script, folder, reference, "one.tar")
            found, lost = names(file)
            if found != [whole] * 3:
                faults.append(f"{reference} should be found as {whole}, and is as {found}")
            faults += [f"{path} is not in the archive" for path in lost]
            if file.read_bytes() != archive(script, folder, reference, "two.tar").read_bytes():
                faults.append("the same files gave other bytes")
        if shutil.which("skopeo"):
            faults += skopeo(file, folder)
        else:
            not_run("debian", "there is no skopeo")
    for fault in faults:
        print(fault)
    print("archives carry their whole names" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
