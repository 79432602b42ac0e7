"""Tests deploy.sh knative without a cluster, with a fake kubectl whose state is a folder."""

import json
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
DEPLOY = HERE.parent / "deploy.sh"
REAL = shutil.which("kubectl")
FUNCTIONS = ["ingest", "count", "store", "batch", "analytics"]


class Cluster(unittest.TestCase):
    """A fake cluster with all prerequisites, unless a test removes some."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.fake = Path(folder.name)

    def deploy(self, *words, **environment):
        return self.run_script(DEPLOY, *words, **environment)

    def run_script(self, script, *words, **environment):
        path = f"{HERE / 'fake'}:{os.environ['PATH']}"
        env = {**self.own(), "PATH": path, "FAKE": str(self.fake), "REAL_KUBECTL": REAL, "TIMEOUT": "20", "TMPDIR": "/tmp",
               **environment}
        return subprocess.run([script, *words], env=env, capture_output=True, text=True, timeout=240, check=False)

    def own(self):
        """Returns an environment in which faas-cli stores its login in the fake. Without OPENFAAS_CONFIG, faas-cli
        would use the working directory if CI is set."""
        return {**os.environ, "HOME": str(self.fake), "OPENFAAS_CONFIG": str(self.fake / ".openfaas")}

    def without(self, *names, file="missing"):
        (self.fake / file).write_text("\n".join(names))

    def read(self, name):
        file = self.fake / name
        return file.read_text().splitlines() if file.exists() else []

    def applied(self):
        return json.loads((self.fake / "cluster.json").read_text())

    def operators(self):
        """Creates what Strimzi's and Scylla's operators would create."""
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
        for word in ("analytics counts 1 users", "store keeps it", "http://ingest.lambda.example.com/user"):
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
        # The two commands of a pipe start in any order.
        self.assertEqual(sorted(self.read("calls")), sorted(calls * 2))

    def test_twice_changes_nothing_in_prod_either(self):
        self.operators()
        first = self.deploy("knative", "up", ENVIRONMENT="prod")
        self.assertEqual(first.returncode, 0, first.stderr)
        cluster, changes = self.applied(), self.read("changes")
        self.assertEqual(self.deploy("knative", "up", ENVIRONMENT="prod").returncode, 0)
        self.assertEqual(self.applied(), cluster)
        self.assertEqual({c.rpartition(" ")[2] for c in self.read("changes")[len(changes):]}, {"unchanged"})
        self.assertEqual(cluster["lambda Secret. kafka"]["data"]["password"], "c2NyYW0=")
        mysql = cluster["lambda Secret. mysql"]["data"]
        self.assertEqual(mysql, {"password": cluster["mysql Secret. mysql-lambda"]["data"]["password"]})
        self.assertEqual(len(mysql["password"]), 44)

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

    def test_each_run_posts_a_user_of_its_own(self):
        for count in (1, 2):
            self.assertIn(f"analytics counts {count} users", self.deploy("knative", "up").stdout)

    def test_a_user_that_is_not_counted_or_not_stored_is_a_failure(self):
        for broken, words in (("count", "analytics did not count the user"), ("store", "not stored within")):
            with self.subTest(broken):
                self.without(broken, file="broken")
                done = self.deploy("knative", "up", TIMEOUT="3")
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(words, done.stderr)

    def test_what_never_gets_ready_is_named_with_condition_pod_log_and_next_command(self):
        self.without("pod/x-7", file="pod")
        self.without("Ready=False RevisionFailed: it does not start\nRoutesReady=True : fine", file="conditions")
        self.without("MYSQL is away", file="log")
        cases = [("kafkasource/log-to-count", "Running", "next: kubectl -n knative-eventing logs pod/x-7 --follow"),
                 ("job/topics", "Pending\nPodScheduled=False Unschedulable: no room", "next: the cluster has no room"),
                 ("statefulset/cassandra", "Pending", "next: kubectl -n cassandra describe pod/x-7"),
                 ("ksvc/store", "Running\nuser-container: ready=false restarts=3 CrashLoopBackOff  Error 64",
                  "next: a key of the configuration is wrong"),
                 ("ksvc/count", "Pending\nuser-container: ready=false restarts=0 ImagePullBackOff no such image ",
                  "next: see that the image is where its name says"),
                 ("ksvc/batch", "Running", "next: kubectl -n lambda logs pod/x-7 -c user-container --follow")]
        for never, state, following in cases:
            with self.subTest(never):
                self.without(never, file="never")
                self.without(state, file="state")
                done = self.deploy("knative", "up")
                self.assertNotEqual(done.returncode, 0)
                kind, name = never.split("/")
                for words in (f"{kind} {name} was not ready within 20 s", "condition Ready=False RevisionFailed: it does not",
                              "pod/x-7", "    MYSQL is away", following):
                    self.assertIn(words, done.stderr)
                self.assertNotIn("RoutesReady", done.stderr)
                if kind == "ksvc":
                    self.assertIn(f"revision {name}-00001", done.stderr)

    def test_what_has_no_pod_is_named_all_the_same(self):
        self.without("ksvc/count", file="never")
        said = self.deploy("knative", "up").stderr
        self.assertIn("there is no pod of it", said)
        self.assertIn("next: kubectl -n lambda describe ksvc count", said)

    def test_configurations_that_no_revision_uses_are_pruned(self):
        self.deploy("knative", "up")
        cluster = self.applied()
        now = next(k for k in cluster if k.startswith("lambda ConfigMap. lambda-architecture-"))
        for name in ("lambda-architecture-0000000000", "lambda-architecture-1111111111", "somebody-elses"):
            cluster[f"lambda ConfigMap. {name}"] = {**cluster[now], "metadata": {"name": name, "namespace": "lambda"}}
        (self.fake / "cluster.json").write_text(json.dumps(cluster))
        self.without("lambda-architecture-1111111111", file="revisions")
        self.assertEqual(self.deploy("knative", "up").returncode, 0)
        left = {k.split()[2] for k in self.applied() if k.startswith("lambda ConfigMap.")}
        self.assertEqual(left, {now.split()[2], "lambda-architecture-1111111111", "somebody-elses"})

    def test_down_says_what_it_waits_for(self):
        self.deploy("knative", "up")
        self.without("3", file="slow")
        done = self.deploy("knative", "down", PROGRESS="1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"\d+ s left for \d+ of infra/knative/dev to go: .*Namespace\. lambda ")
        self.assertIn("sends the whole log again", done.stdout)

    def test_down_that_does_not_end_is_bounded_and_a_failure(self):
        self.deploy("knative", "up")
        self.without("1000", file="slow")
        done = self.deploy("knative", "down", TIMEOUT="2")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("still there after 2 s", done.stderr)

    def test_the_gateways_version_is_said(self):
        self.without("referencegrants.gateway.networking.k8s.io")
        self.assertIn("ReferenceGrant v1 is there from 1.5 on", self.deploy("knative", "up", ROUTES="gateway").stderr)

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


class Kind(Cluster):
    """The steps of the workflow's job, with a fake kind and docker."""

    def steps(self, *words, **environment):
        return self.run_script(HERE.parent / "kind.sh", *words, **{"USERS": "20", **environment})

    def test_all_steps(self):
        self.without("pod/x-1", file="pod")
        done = self.steps()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("each of them is counted and stored once", done.stdout)
        calls = self.read("calls")
        self.assertTrue(calls[0].startswith("kind create cluster --name lambda --image kindest/node:v1."))
        applied = [c for c in calls if "/releases/download/knative-v1." in c]
        self.assertEqual(len(applied), 8)
        for name in FUNCTIONS:
            self.assertIn(f"kind load docker-image dev.local/lambda-architecture/{name}:dev --name lambda", calls)
        self.assertTrue([c for c in calls if "delete pod/x-1 --grace-period=0" in c])
        self.assertEqual(calls[-1], "kind delete cluster --name lambda")
        self.assertEqual(self.applied(), {})

    def test_a_burst_that_is_not_counted_or_stored_is_a_failure(self):
        for broken in ("count", "store"):
            self.without(broken, file="broken")
            done = self.steps("burst", TIMEOUT="3")
            self.assertNotEqual(done.returncode, 0)
            self.assertRegex(done.stderr, "of 20 users .* are counted and .* stored")

    def test_a_second_run_that_changes_something_is_a_failure(self):
        self.steps("up")
        cluster = self.applied()
        cluster["lambda Service.serving.knative.dev count"]["spec"]["template"]["spec"]["timeoutSeconds"] = 1
        (self.fake / "cluster.json").write_text(json.dumps(cluster))
        done = self.steps("again")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("the second run changed", done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=1)
