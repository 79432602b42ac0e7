"""deploy.sh without a cluster: a kubectl that is a folder, the real faas-cli and a stand-in of OpenFaaS' gateway."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
DEPLOY = HERE.parent / "deploy.sh"
REAL = shutil.which("kubectl")
FUNCTIONS = ["ingest", "count", "store", "batch", "analytics"]


class Cluster(unittest.TestCase):
    """A cluster that has all that is needed, until a case takes something away."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.fake = Path(folder.name)

    def deploy(self, *words, **environment):
        path = f"{HERE / 'fake'}:{os.environ['PATH']}"
        env = {**self.own(), "PATH": path, "FAKE": str(self.fake), "REAL_KUBECTL": REAL, "TIMEOUT": "20", "TMPDIR": "/tmp",
               **environment}
        return subprocess.run([DEPLOY, *words], env=env, capture_output=True, text=True, timeout=120, check=False)

    def own(self):
        """Where faas-cli keeps a login, which without the last is the folder it runs in where CI is set."""
        return {**os.environ, "HOME": str(self.fake), "OPENFAAS_CONFIG": str(self.fake / ".openfaas")}

    def without(self, *names, file="missing"):
        (self.fake / file).write_text("\n".join(names))

    def read(self, name):
        file = self.fake / name
        return file.read_text().splitlines() if file.exists() else []

    def applied(self):
        return json.loads((self.fake / "cluster.json").read_text())

    def operators(self):
        """What Strimzi's and Scylla's operators would have made."""
        made = [("kafka", "Secret", "lambda", {"password": "c2NyYW0="}),
                ("kafka", "Secret", "kafka-cluster-ca-cert", {"ca.crt": "LS0tQQpC"}),
                ("cassandra", "ConfigMap", "cassandra-local-serving-ca", {"ca-bundle.crt": "---C\nD"})]
        (self.fake / "cluster.json").write_text(json.dumps({
            f"{n} {k}. {name}": {"apiVersion": "v1", "kind": k, "metadata": {"name": name, "namespace": n}, "data": data}
            for n, k, name, data in made}))


class Knative(Cluster):
    def test_from_nothing_to_a_counted_user(self):
        done = self.deploy("knative", "up")
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        for word in ("analytics counts 1 users", "http://ingest.lambda.example.com/user"):
            self.assertIn(word, done.stdout)
        self.assertLessEqual({f"lambda Service.serving.knative.dev {f}" for f in FUNCTIONS}, set(self.applied()))
        self.assertIn("POST /user", self.read("requests"))

    def test_servers_are_ready_before_functions_come(self):
        self.deploy("knative", "up")
        calls = self.read("calls")
        mysql = next(i for i, c in enumerate(calls) if "rollout status statefulset/mysql" in c)
        functions = next(i for i, c in enumerate(calls) if c == "kustomize infra/knative/dev")
        self.assertLess(mysql, functions)

    def test_twice_changes_nothing(self):
        self.deploy("knative", "up")
        first, calls = self.read("changes"), self.read("calls")
        done = self.deploy("knative", "up")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual({c.rpartition(" ")[2] for c in self.read("changes")[len(first):]}, {"unchanged"})
        # The two ends of a pipe start in any order.
        self.assertEqual(sorted(self.read("calls")), sorted(calls * 2))

    def test_twice_changes_nothing_in_prod_either(self):
        self.operators()
        first = self.deploy("knative", "up", ENVIRONMENT="prod")
        self.assertEqual(first.returncode, 0, first.stderr)
        cluster, changes = self.applied(), self.read("changes")
        self.assertEqual(self.deploy("knative", "up", ENVIRONMENT="prod").returncode, 0)
        self.assertEqual(self.applied(), cluster)
        self.assertEqual({c.rpartition(" ")[2] for c in self.read("changes")[len(changes):]}, {"unchanged"})
        secret = cluster["lambda Secret. lambda-architecture"]["data"]
        self.assertEqual(secret["KAFKA_PASSWORD"], "c2NyYW0=")
        self.assertEqual(secret["MYSQL_PASSWORD"], cluster["mysql Secret. mysql-lambda"]["data"]["password"])
        self.assertEqual(len(secret["MYSQL_PASSWORD"]), 44)

    def test_no_password_is_on_a_command_line_or_on_the_screen(self):
        self.operators()
        done = self.deploy("knative", "up", ENVIRONMENT="prod")
        self.assertNotIn("scram", done.stdout + done.stderr + "\n".join(self.read("calls")).replace("scram-", ""))

    def test_each_missing_thing_comes_with_its_command_before_anything_is_changed(self):
        things = {
            "services.serving.knative.dev": ("Knative Serving", "serving-core.yaml"),
            "kourier-internal knative-local-gateway envoy": ("network layer", "kourier.yaml"),
            "pingsources.sources.knative.dev": ("Knative Eventing", "eventing-core.yaml"),
            "kafkasources.sources.knative.dev": ("KafkaSource", "eventing-kafka-source.yaml"),
            "kafkasinks.eventing.knative.dev": ("KafkaSink", "eventing-kafka-sink.yaml"),
            "storageclass": ("default storage class", "kubectl patch storageclass"),
            "kafkanodepools.kafka.strimzi.io": ("Strimzi", "strimzi.io/install"),
            "innodbclusters.mysql.oracle.com": ("MySQL's operator", "helm install mysql-operator"),
            "scyllaclusters.scylla.scylladb.com": ("Scylla's operator", "helm install scylla-operator"),
        }
        self.without(*" ".join(things).split())
        done = self.deploy("knative", "up", ENVIRONMENT="prod")
        self.assertNotEqual(done.returncode, 0)
        said = done.stderr.split("missing: ")[1:]
        for word, command in things.values():
            self.assertTrue([s for s in said if word in s and command in s], f"{word}: {done.stderr}")
        self.assertIn(f"{len(things)} things are missing; nothing was changed", done.stderr)
        self.assertEqual(self.read("changes"), [])

    def test_one_missing_thing_is_said_alone(self):
        self.without("kafkasinks.eventing.knative.dev")
        self.assertEqual(self.deploy("knative", "up").stderr.count("missing: "), 1)

    def test_no_cluster_is_said_first(self):
        self.without("cluster")
        self.assertRegex(self.deploy("knative", "up").stderr, "(?s)a cluster that kubectl reaches.*kind create cluster")

    def test_an_old_cluster_is_refused(self):
        self.without("v1.27.4", file="version")
        self.assertIn("Kubernetes 1.30 or newer (there is 1.27)", self.deploy("knative", "up").stderr)

    def test_an_older_kind_is_refused_with_what_is_there(self):
        self.without("kafkasources.sources.knative.dev", file="old")
        said = self.deploy("knative", "up").stderr
        self.assertRegex(said, "a newer KafkaSource .kafkasources.sources.knative.dev has v1alpha0, and not v1")
        self.assertIn("1 things are missing", said)

    def test_what_never_gets_ready_is_named_with_where_to_look(self):
        for never in ("kafkasource/log-to-count", "job/topics", "statefulset/cassandra"):
            with self.subTest(never):
                self.without(never, file="never")
                done = self.deploy("knative", "up")
                self.assertNotEqual(done.returncode, 0)
                kind, name = never.split("/")
                self.assertRegex(done.stderr, rf"{kind}[ /]{name} was not ready within 20 s; see: kubectl -n")

    def test_images_come_from_where_they_are(self):
        self.deploy("knative", "up", IMAGES="registry.example.com/la", TAG="1.2")
        count = self.applied()["lambda Service.serving.knative.dev count"]
        self.assertEqual(count["spec"]["template"]["spec"]["containers"][0]["image"], "registry.example.com/la/count:1.2")

    def test_down_takes_the_functions_and_keeps_the_data(self):
        self.deploy("knative", "up")
        self.assertEqual(self.deploy("knative", "down").returncode, 0)
        self.assertFalse([k for k in self.applied() if k.startswith("lambda ")])
        self.assertIn("mysql StatefulSet.apps mysql", self.applied())
        self.assertEqual(self.deploy("knative", "down", DATA="delete").returncode, 0)
        self.assertEqual(self.applied(), {})

    def test_routes_follow_what_the_cluster_has(self):
        self.without("public")
        self.deploy("knative", "up")
        self.assertIn("lambda Ingress.networking.k8s.io ingest", self.applied())
        self.without()
        self.deploy("knative", "up")
        self.assertIn("lambda HTTPRoute.gateway.networking.k8s.io functions", self.applied())

    def test_wrong_words_are_answered_with_the_usage(self):
        done = self.deploy("knative", "sideways")
        self.assertEqual(done.returncode, 2)
        self.assertIn("deploy.sh knative|openfaas up|down", done.stderr)


@unittest.skipUnless(shutil.which("faas-cli"), "faas-cli cannot be built")
class OpenFaas(Cluster):
    def setUp(self):
        super().setUp()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.gateway = subprocess.Popen(["python", HERE / "standin.py", str(port), self.fake])
        self.addCleanup(self.gateway.wait)
        self.addCleanup(self.gateway.kill)
        until = time.monotonic() + 20
        while not self.listens(port) and time.monotonic() < until:
            time.sleep(0.05)
        self.login("admin")

    def listens(self, port):
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    def login(self, password):
        subprocess.run(["faas-cli", "login", "-g", self.url, "--password", password],
                       env=self.own(), capture_output=True, check=False)

    def up(self, **environment):
        return self.deploy("openfaas", "up", OPENFAAS_URL=self.url, **environment)

    def deployed(self):
        return json.loads((self.fake / "functions.json").read_text())

    def test_from_nothing_to_a_counted_user_twice(self):
        for _ in range(2):
            done = self.up(IMAGES="registry.example.com/la", TAG="1.2")
            self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
            self.assertIn("analytics counts 1 users", done.stdout)
        functions = self.deployed()["functions"]
        self.assertEqual(sorted(functions), sorted(FUNCTIONS))
        for name, wanted in functions.items():
            self.assertEqual(wanted["image"], f"registry.example.com/la/{name}:1.2")
            self.assertIs(wanted["readOnlyRootFilesystem"], True)
            self.assertEqual(wanted["secrets"], ["lambda-architecture", "cassandra-ca"])
            self.assertEqual(wanted["limits"], {"memory": "256Mi"})
            self.assertEqual(wanted["envVars"]["CONFIG_FILE"], "/var/openfaas/secrets/lambda-architecture")
            self.assertEqual(wanted["labels"]["com.openfaas.scale.max"], "1" if name == "batch" else "5")
        self.assertEqual({c.rpartition(" ")[2] for c in self.read("changes")[len(self.read("changes")) // 2:]}, {"unchanged"})
        self.assertIn("openfaas Deployment.apps forwarder", self.applied())
        forwarder = self.applied()["openfaas Deployment.apps forwarder"]["spec"]["template"]["spec"]["containers"][0]
        self.assertEqual(forwarder["image"], "registry.example.com/la/forwarder:1.2")

    def test_the_configuration_is_that_of_knative(self):
        self.operators()
        done = self.up(ENVIRONMENT="prod")
        self.assertEqual(done.returncode, 0, done.stderr)
        config = self.deployed()["secrets"]["lambda-architecture"]
        self.assertIn("KAFKA_CA='---A\nB'\n", config)
        self.assertRegex(config, r"MYSQL_PASSWORD='\w{32}'\n")
        rendered = subprocess.run([REAL, "kustomize", "infra/knative/prod"],
                                  cwd=HERE.parent.parent, capture_output=True, text=True, check=True).stdout
        of = next(r for r in yaml.safe_load_all(rendered) if r["kind"] == "ConfigMap")["data"]
        for key in ("LOG_URL", "MASTER_URL", "VIEWS_URL"):
            self.assertIn(f"{key}='{of[key]}'", config.splitlines())

    def test_a_changed_password_reaches_the_functions(self):
        self.operators()
        self.up(ENVIRONMENT="prod")
        cluster = self.applied()
        cluster["kafka Secret. lambda"]["data"]["password"] = "bmV3"
        (self.fake / "cluster.json").write_text(json.dumps(cluster))
        self.assertEqual(self.up(ENVIRONMENT="prod").returncode, 0)
        self.assertIn("KAFKA_PASSWORD='new'", self.deployed()["secrets"]["lambda-architecture"])

    def test_what_is_missing_comes_with_its_command(self):
        self.without("openfaas")
        self.assertRegex(self.up().stderr, "(?s)OpenFaaS .no namespace openfaas.*helm install openfaas")
        self.without()
        self.login("wrong")
        (self.fake / ".openfaas").exists() and shutil.rmtree(self.fake / ".openfaas")
        self.assertRegex(self.up().stderr, "(?s)a gateway at .* that lets you in.*faas-cli login")
        self.assertEqual(self.read("changes"), [])

    def test_a_function_that_never_gets_ready_is_named(self):
        self.without("store", file="never")
        done = self.up(TIMEOUT="3")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("the function store was not ready within 3 s", done.stderr)

    def test_faasd_needs_no_cluster(self):
        config = self.fake / "app.env"
        config.write_text("LOG_URL=kafka://kafka.example.com:9092/user\n")
        done = self.up(ENVIRONMENT="faasd", CONFIG=str(config))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("docker-compose.yaml", done.stdout)
        self.assertEqual(self.deployed()["secrets"]["lambda-architecture"], config.read_text().strip())
        self.assertEqual(self.read("calls"), [])

    def test_down_takes_all_functions(self):
        self.up()
        done = self.deploy("openfaas", "down", OPENFAAS_URL=self.url)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.deployed()["functions"], {})
        self.assertNotIn("openfaas Deployment.apps forwarder", self.applied())


if __name__ == "__main__":
    unittest.main(verbosity=1)
