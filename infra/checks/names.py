"""Checks references by name: each target must exist, with the referenced key, port, topic and group.

Usage: names.py SECRETS_TSV FILE…; the files are all rendered overlays of one environment. Does not check schemas.
"""

import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import yaml

SERVING = "serving.knative.dev/v1"
PUBLIC, INSIDE = {"ingest", "analytics"}, {"count", "store", "batch"}
ROOT = Path(__file__).resolve().parent.parent.parent
FORWARDER = {"LOG_URL", "GATEWAY_URL", "EVENT_TOKEN"}


class Environment:
    """All resources of one environment, and those that their operators will create."""

    def __init__(self, resources, secrets):
        self.resources, self.faults = resources, []
        self.data = {}  # (kind, namespace, name) -> {key: value or None}
        self.ports = {}  # host -> ports
        for r in resources:
            self.take(r)
        for namespace, name, key, source in secrets:
            self.data.setdefault(("Secret", namespace, name), {})[key] = None
            if source.startswith("copy:"):
                of, kind, origin, field = source.removeprefix("copy:").split("/", 3)
                kind = {"secret": "Secret", "configmap": "ConfigMap"}[kind]
                if not any(s[:3] == (of, origin, field) for s in secrets):
                    self.key(f"infra/secrets.tsv: {namespace}/{name} {key}", kind, of, origin, field)

    def take(self, r):
        kind, name, namespace = r["kind"], r["metadata"]["name"], r["metadata"].get("namespace", "")
        if kind in ("ConfigMap", "Secret"):
            values = {**r.get("data", {}), **r.get("stringData", {})}
            self.data.setdefault((kind, namespace, name), {}).update(values)
        elif kind == "Service" and r["apiVersion"] == "v1":
            self.port(f"{name}.{namespace}", *[p["port"] for p in r["spec"]["ports"]])
        elif kind == "Kafka":
            self.port(f"{name}-kafka-bootstrap.{namespace}", *[l["port"] for l in r["spec"]["kafka"]["listeners"]])
            self.data[("Secret", namespace, f"{name}-cluster-ca-cert")] = {"ca.crt": None}
        elif kind == "KafkaUser":
            self.data[("Secret", namespace, name)] = {"password": None, "sasl.jaas.config": None}
        elif kind == "InnoDBCluster":
            self.port(f"{name}.{namespace}", 3306)
        elif kind == "ScyllaCluster":
            self.port(f"{name}-client.{namespace}", 9042, 9142)
            self.data[("ConfigMap", namespace, f"{name}-local-serving-ca")] = {"ca-bundle.crt": None}

    def port(self, host, *ports):
        self.ports.setdefault(host, set()).update(ports)

    def of(self, kind, api=""):
        return [r for r in self.resources if r["kind"] == kind and r["apiVersion"].startswith(api)]

    def fault(self, where, why):
        self.faults.append(f"{where}: {why}")

    def key(self, where, kind, namespace, name, key=None):
        """Checks that a ConfigMap or a Secret exists, and has this key."""
        values = self.data.get((kind, namespace, name))
        if values is None:
            self.fault(where, f"there is no {kind} {namespace}/{name}")
        elif key and key not in values:
            self.fault(where, f"the {kind} {namespace}/{name} has no key {key}")

    def host(self, where, host, port):
        name = host.removesuffix(".cluster.local").removesuffix(".svc")
        if name not in self.ports:
            self.fault(where, f"there is no Service {name}")
        elif port not in self.ports[name]:
            self.fault(where, f"the Service {name} has no port {port}")


def where(r):
    return f"{r['kind']} {r['metadata']['name']}"


def pods(r):
    """Returns the pod specification of a resource, or `None` if it has none."""
    spec = r.get("spec") or {}
    template = (spec.get("template") or {}).get("spec") if isinstance(spec.get("template"), dict) else None
    return template if template and "containers" in template else None


def configuration(env):
    """Checks every ConfigMap and Secret that a pod reads."""
    for r in env.resources:
        spec, namespace = pods(r), r["metadata"].get("namespace", "")
        if not spec:
            continue
        for volume in spec.get("volumes") or []:
            if "secret" in volume:
                env.key(where(r), "Secret", namespace, volume["secret"]["secretName"])
            if "configMap" in volume:
                env.key(where(r), "ConfigMap", namespace, volume["configMap"]["name"])
        for container in spec["containers"]:
            for source in container.get("envFrom") or []:
                for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                    if field in source and not source[field].get("optional"):
                        env.key(where(r), kind, namespace, source[field]["name"])
            for variable in container.get("env") or []:
                for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                    source = (variable.get("valueFrom") or {}).get(field)
                    if source and not source.get("optional"):
                        env.key(where(r), kind, namespace, source["name"], source["key"])
            mounted = {m["name"] for m in container.get("volumeMounts") or []}
            claims = r["spec"].get("volumeClaimTemplates") or []
            there = {v["name"] for v in spec.get("volumes") or []} | {c["metadata"]["name"] for c in claims}
            for missing in mounted - there:
                env.fault(where(r), f"there is no volume {missing}")


def keys_of(env, r):
    """Returns the environment variables of a pod."""
    keys = {}
    for container in pods(r)["containers"]:
        for source in container.get("envFrom") or []:
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in source:
                    keys.update(env.data.get((kind, r["metadata"]["namespace"], source[field]["name"])) or {})
        for variable in container.get("env") or []:
            origin = variable.get("valueFrom") or {}
            if not origin:
                keys[variable["name"]] = variable.get("value")
            for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                source = origin.get(field)
                data = env.data.get((kind, r["metadata"]["namespace"], source["name"])) if source else None
                if source and source["key"] in (data or {}):
                    keys[variable["name"]] = data[source["key"]]
    return keys


def manifest(name):
    """Returns the keys in a function's manifest, and those without which the function would use an embedded store."""
    spec = yaml.safe_load((ROOT / "functions" / name / "service.yaml").read_text())
    variables = pods(spec)["containers"][0].get("env") or []
    needed = {v["name"] for v in variables if not v["valueFrom"]["configMapKeyRef"].get("optional")}
    return {v["name"] for v in variables}, needed


def common():
    """Returns the keys that every function may have."""
    patch = yaml.safe_load((ROOT / "infra/knative/base/function.yaml").read_text())
    return {p["value"]["name"] for p in patch if p["path"].endswith("/env/-")}


def privilege(env, r, own, keys):
    """Checks that a pod has its own keys, the secrets that they refer to, and nothing else."""
    referred = {n for key in own for n in re.findall(r"\$\(([^)]*)\)", keys.get(key) or "")}
    for key in sorted(set(keys) - own - common() - referred):
        env.fault(where(r), f"must not have {key}")
    for container in pods(r)["containers"]:
        mounts = {m["name"]: m["mountPath"] for m in container.get("volumeMounts") or []}
        for volume in [v for v in pods(r).get("volumes") or [] if "secret" in v]:
            path = mounts.get(volume["name"], "\0")
            if not any((keys[key] or "").startswith(f"{path}/") for key in referred & set(keys)):
                env.fault(where(r), f"must not have the Secret {volume['secret']['secretName']}, which no key of it names")


def functions(env):
    """Checks the five functions, their configuration, and that they have no more privileges than they need."""
    services = {r["metadata"]["name"]: r for r in env.of("Service", "serving")}
    if set(services) != PUBLIC | INSIDE:
        env.fault("functions", f"there must be {sorted(PUBLIC | INSIDE)}, there are {sorted(services)}")
    topics = set()
    for name, r in services.items():
        spec, container = pods(r), pods(r)["containers"][0]
        inside = r["metadata"].get("labels", {}).get("networking.knative.dev/visibility") == "cluster-local"
        if inside != (name in INSIDE):
            env.fault(where(r), "must be cluster-local" if name in INSIDE else "must be public")
        if not re.search(rf"(^|/)lambda-architecture/{name}(:|@|$)", container["image"]):
            env.fault(where(r), f"runs the image {container['image']}")
        annotations = r["spec"]["template"]["metadata"]["annotations"]
        for annotation in ("min-scale", "max-scale", "target-utilization-percentage"):
            if f"autoscaling.knative.dev/{annotation}" not in annotations:
                env.fault(where(r), f"has no {annotation}")
        for field in ("containerConcurrency", "timeoutSeconds"):
            if field not in spec:
                env.fault(where(r), f"has no {field}")
        security = container.get("securityContext") or {}
        if (security.get("runAsNonRoot"), security.get("readOnlyRootFilesystem")) != (True, True) or \
                security.get("allowPrivilegeEscalation") is not False or \
                security.get("capabilities") != {"drop": ["ALL"]} or \
                security.get("seccompProfile") != {"type": "RuntimeDefault"}:
            env.fault(where(r), "may do more on its node than it needs")
        for field in ("readinessProbe", "livenessProbe", "resources"):
            if field not in container:
                env.fault(where(r), f"has no {field}")
        keys = keys_of(env, r)
        own, needed = manifest(name) if name in PUBLIC | INSIDE else (set(), set())
        for key in sorted(needed - set(keys)):
            env.fault(where(r), f"its configuration has no {key}")
        privilege(env, r, own, keys)
        for key, value in keys.items():
            if key.endswith("_URL") and value:
                topics |= url(env, where(r), key, value, keys)
    for r in [r for r in env.of("Deployment") if r["metadata"]["name"] == "forwarder"]:
        keys = keys_of(env, r)
        privilege(env, r, FORWARDER, keys)
        if not keys.get("LOG_URL"):
            env.fault(where(r), "its configuration has no LOG_URL")
        else:
            url(env, where(r), "LOG_URL", keys["LOG_URL"], keys)
    return services, topics


def url(env, place, key, value, keys):
    """Checks that a URL's host and port exist, and that its references `$(…)` do. Returns the log's topic."""
    for name in re.findall(r"\$\(([^)]*)\)", value):
        if name not in keys:
            env.fault(place, f"{key} wants $({name}), which no ConfigMap and no Secret has")
    parts = urlsplit(re.sub(r"\$\([^)]*\)", "x", value))
    for host in parts.netloc.rpartition("@")[2].split(","):
        name, _, port = host.partition(":")
        env.host(f"{place}: {key}", name, int(port))
    return {parts.path.strip("/")} if key == "LOG_URL" else set()


def arrows(env, services, log_topics):
    """Checks sources, sinks, topics and consumer groups."""
    topics = {r["metadata"]["name"]: r["spec"]["partitions"] for r in env.of("KafkaTopic")}
    for job in env.of("Job"):
        script = "\n".join(pods(job)["containers"][0].get("command") or [])
        topics.update({n: int(p) for n, p in re.findall(r"^topic (\S+) (\d+)$", script, re.M)})
    sinks = {r["metadata"]["name"]: r for r in env.of("KafkaSink")}
    groups, read = {}, set()
    for r in env.of("KafkaSink") + env.of("KafkaSource"):
        for server in r["spec"]["bootstrapServers"]:
            env.host(where(r), *[f(x) for f, x in zip((str, int), server.split(":"))])
        for topic in r["spec"].get("topics") or [r["spec"].get("topic")]:
            if topic not in topics:
                env.fault(where(r), f"nothing makes the topic {topic}")
        secret = ((r["spec"].get("auth") or {}).get("secret") or {}).get("ref")
        for key in ("protocol", "sasl.mechanism", "user", "password", "ca.crt") if secret else ():
            env.key(where(r), "Secret", r["metadata"]["namespace"], secret["name"], key)
    for r in env.of("KafkaSource"):
        spec = r["spec"]
        read.update(spec["topics"])
        group = spec.get("consumerGroup")
        if not group or group in groups:
            env.fault(where(r), f"shares its consumer group {group} with {groups.get(group, 'whatever Knative makes up')}")
        groups[group] = where(r)
        if group != spec["sink"]["ref"]["name"]:
            env.fault(where(r), f"its consumer group {group} must be named as the function it leads to")
        if spec.get("initialOffset") != "earliest":
            env.fault(where(r), "must begin at the earliest record")
        if spec.get("consumers", 1) > min((topics.get(t, 0) for t in spec["topics"]), default=0):
            env.fault(where(r), "has more consumers than its topic has partitions")
        delivery = spec.get("delivery") or {}
        if not delivery.get("retry"):
            env.fault(where(r), "has no retry")
        letter = ((delivery.get("deadLetterSink") or {}).get("ref") or {}).get("name")
        if letter not in sinks:
            env.fault(where(r), f"there is no KafkaSink {letter}")
        for part in (spec.get("net") or {}).values():
            for source in [s["secretKeyRef"] for s in part.values() if isinstance(s, dict)]:
                env.key(where(r), "Secret", r["metadata"]["namespace"], source["name"], source["key"])
    for r in env.of("KafkaSource") + env.of("PingSource"):
        to = r["spec"]["sink"]["ref"]
        if (to["apiVersion"], to["kind"]) != (SERVING, "Service") or to["name"] not in services:
            env.fault(where(r), f"there is no {to['apiVersion']} {to['kind']} {to['name']}")
    if read != log_topics:
        env.fault("arrows", f"ingest writes to {sorted(log_topics)}, the sources read {sorted(read)}")


def ways(env, services):
    """Checks that the targets of routes, policies and selectors exist."""
    hosts = {f"{name}.{r['metadata']['namespace']}.svc.cluster.local" for name, r in services.items() if name in PUBLIC}

    def public(r, host):
        if host not in hosts:
            env.fault(where(r), f"leads to {host}, which is no public function")

    for r in env.of("HTTPRoute"):
        for rule in r["spec"]["rules"]:
            for rewrite in [f["urlRewrite"] for f in rule["filters"] if f["type"] == "URLRewrite"]:
                public(r, rewrite["hostname"])
    for r in env.of("Ingress"):
        host = r["metadata"]["annotations"]["nginx.ingress.kubernetes.io/upstream-vhost"]
        public(r, host)
        for path in [p for rule in r["spec"]["rules"] for p in rule["http"]["paths"]]:
            if path["backend"]["service"]["name"] != host.partition(".")[0]:
                env.fault(where(r), f"leads to {path['backend']['service']['name']} by the name {host}")
    for r in env.of("NetworkPolicy") + env.of("PodDisruptionBudget"):
        selector = r["spec"].get("podSelector") or r["spec"].get("selector") or {}
        named = [selector.get("matchLabels", {}).get("serving.knative.dev/service")]
        for expression in selector.get("matchExpressions") or []:
            if expression["key"] == "serving.knative.dev/service":
                named += expression.get("values") or []
        for name in [n for n in named if n and n not in services]:
            env.fault(where(r), f"there is no function {name}")
    templates = [(r["metadata"].get("namespace"), r["spec"]["template"]["metadata"].get("labels") or {})
                 for r in env.resources if pods(r) and r["kind"] in ("Deployment", "StatefulSet")]
    for r in env.of("Service", "v1"):
        wanted = (r["spec"].get("selector") or {}).items()
        if not any(n == r["metadata"].get("namespace") and wanted <= l.items() for n, l in templates):
            env.fault(where(r), "selects no pod")


def secrets(file):
    with open(file, encoding="utf-8") as text:
        return [tuple(l.rstrip("\n").split("\t")) for l in text if l.strip() and not l.startswith("#")]


def main(table, files):
    resources = []
    for file in files:
        with open(file, encoding="utf-8") as text:
            resources += [r for r in yaml.safe_load_all(text) if r]
    env = Environment(resources, secrets(table) if table != "-" else [])
    configuration(env)
    services, topics = functions(env)
    arrows(env, services, topics)
    ways(env, services)
    for fault in env.faults:
        print(fault)
    print("all names agree" if not env.faults else f"{len(env.faults)} names do not agree")
    return 1 if env.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
