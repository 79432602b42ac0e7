"""Tests deploy.sh openfaas without a cluster, with the real faas-cli, a fake gateway, and a fake kubectl."""

import base64
import json
import re
import shutil
import socket
import subprocess
import time
import unittest

import yaml

from deploying import FUNCTIONS, HERE, REAL, Cluster

URLS = """LOG_URL=kafka://k.example.com:9092/user
MASTER_URL='mysql://lambda:$(MYSQL_PASSWORD)@m.example.com:3306/lambda'
VIEWS_URL=cassandra://c.example.com:9042/lambda
MYSQL_PASSWORD='x'
"""


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
        images = {"IMAGES": "registry.example.com/la", "TAG": "1.2"}
        return self.deploy("openfaas", "up", OPENFAAS_URL=self.url, RENDERED=str(self.fake / "faasd.yaml"),
                           **{**images, **environment})

    def down(self, **environment):
        return self.deploy("openfaas", "down", OPENFAAS_URL=self.url, **environment)

    def faasd(self, config=URLS, **environment):
        file = self.fake / "app.env"
        file.write_text(config)
        forwarder = {"FORWARDER_URL": self.url}
        return self.up(ENVIRONMENT="faasd", CONFIG=str(file), **{**forwarder, **environment})

    def deployments(self):
        return [r for r in self.read("requests") if r in ("POST /system/functions", "PUT /system/functions")]

    def deployed(self):
        return json.loads((self.fake / "functions.json").read_text())

    def keys(self, config):
        return sorted(re.findall(r"^(\w+)=", config, re.M))

    def test_from_nothing_to_a_counted_user_twice(self):
        for count in (1, 2):
            before = len(self.read("changes"))
            done = self.up()
            self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
            self.assertIn(f"analytics counts {count} users", done.stdout)
            self.assertIn("store keeps it", done.stdout)
        functions = self.deployed()["functions"]
        self.assertEqual(sorted(functions), sorted(FUNCTIONS))
        for name, wanted in functions.items():
            self.assertEqual(wanted["image"], f"registry.example.com/la/{name}:1.2")
            self.assertIs(wanted["readOnlyRootFilesystem"], True)
            token = ["event-token"] if name in ("count", "store", "batch") else []
            authority = ["cassandra-ca"] if name in ("count", "analytics") else []
            self.assertEqual(wanted["secrets"], [f"lambda-{name}", *authority, *token])
            self.assertEqual(wanted["envVars"].get("EVENT_TOKEN_FILE"),
                             "/var/openfaas/secrets/event-token" if token else None)
            self.assertEqual(wanted["limits"], {"memory": "256Mi"})
            self.assertEqual(wanted["envVars"]["CONFIG_FILE"], f"/var/openfaas/secrets/lambda-{name}")
            self.assertEqual(wanted["labels"]["com.openfaas.scale.max"], "1" if name == "batch" else "5")
        self.assertEqual([c for c in self.read("changes")[before:] if not c.endswith(" unchanged")], [])
        self.assertIn("openfaas Deployment.apps forwarder", self.applied())
        forwarder = self.applied()["openfaas Deployment.apps forwarder"]["spec"]["template"]["spec"]["containers"][0]
        self.assertEqual(forwarder["image"], "registry.example.com/la/forwarder:1.2")

    def test_the_configuration_is_that_of_knative(self):
        self.operators()
        done = self.up(ENVIRONMENT="prod")
        self.assertEqual(done.returncode, 0, done.stderr)
        secrets = self.deployed()["secrets"]
        self.assertIn("KAFKA_CA='---A\nB'\n", secrets["lambda-ingest"])
        self.assertRegex(secrets["lambda-store"], r"MYSQL_PASSWORD='\w{32}'(\n|$)")
        self.assertNotIn("lambda-forwarder", secrets)
        rendered = subprocess.run([REAL, "kustomize", "infra/knative/prod"],
                                  cwd=HERE.parent.parent, capture_output=True, text=True, check=True).stdout
        of = next(r for r in yaml.safe_load_all(rendered) if r["kind"] == "ConfigMap")["data"]
        for key, name in (("LOG_URL", "ingest"), ("MASTER_URL", "store"), ("VIEWS_URL", "count")):
            self.assertIn(f"{key}='{of[key]}'", secrets[f"lambda-{name}"].splitlines())
        own = {"ingest": ["KAFKA_CA", "KAFKA_PASSWORD", "LOG_URL"], "count": ["CASSANDRA_PASSWORD", "VIEWS_URL"],
               "store": ["MASTER_URL", "MYSQL_PASSWORD"], "batch": ["MASTER_URL", "MYSQL_PASSWORD"],
               "analytics": ["CASSANDRA_PASSWORD", "MASTER_URL", "MYSQL_PASSWORD", "VIEWS_URL"]}
        for name, keys in own.items():
            self.assertEqual(self.keys(secrets[f"lambda-{name}"]), sorted([*keys, "LOG_LEVEL"]))

    def test_a_changed_password_reaches_the_functions(self):
        self.operators()
        self.up(ENVIRONMENT="prod")
        cluster = self.applied()
        cluster["kafka Secret. lambda"]["data"]["password"] = "bmV3"
        (self.fake / "cluster.json").write_text(json.dumps(cluster))
        self.assertEqual(self.up(ENVIRONMENT="prod").returncode, 0)
        self.assertIn("KAFKA_PASSWORD='new'", self.deployed()["secrets"]["lambda-ingest"])

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
        done = self.faasd(TIMEOUT="3", FORWARDER_URL="http://127.0.0.1:1")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("the function store was not ready within 3 s", done.stderr)

    def test_twice_deploys_nothing_anew(self):
        self.faasd(FORWARDER_URL="http://127.0.0.1:1")
        first = self.deployments()
        said = self.faasd().stdout
        for name in FUNCTIONS:
            self.assertIn(f"\n{name} unchanged\n", said)
        self.assertEqual(self.deployments(), first)

    def test_only_what_differs_is_deployed(self):
        self.faasd(FORWARDER_URL="http://127.0.0.1:1")
        state = self.deployed()
        state["functions"]["store"]["image"] = "registry.example.com/la/store:1.1"
        (self.fake / "functions.json").write_text(json.dumps(state))
        said = self.faasd().stdout
        self.assertIn("store deployed", said)
        self.assertIn("count unchanged", said)
        self.assertEqual(self.deployed()["functions"]["store"]["image"], "registry.example.com/la/store:1.2")

    def test_another_tag_or_configuration_deploys_all(self):
        self.faasd(FORWARDER_URL="http://127.0.0.1:1")
        for change in ({"TAG": "1.3"}, {"TAG": "1.3", "config": URLS + "LOG_LEVEL=debug\n"}):
            self.assertEqual(self.faasd(**change).stdout.count(" deployed\n"), 5)

    def test_the_token_is_made_once_and_is_the_forwarders(self):
        self.up()
        token = self.deployed()["secrets"]["event-token"]
        self.assertRegex(token, r"^\w{32}$")
        kept = self.applied()["openfaas Secret. event-token"]["data"]["EVENT_TOKEN"]
        self.assertEqual(base64.b64decode(kept).decode(), token)
        forwarder = self.applied()["openfaas Deployment.apps forwarder"]["spec"]["template"]["spec"]["containers"][0]
        token_key = {"secretKeyRef": {"name": "event-token", "key": "EVENT_TOKEN"}}
        self.assertIn({"name": "EVENT_TOKEN", "valueFrom": token_key}, forwarder["env"])
        done = self.up()
        self.assertEqual(self.deployed()["secrets"]["event-token"], token)
        self.assertNotIn(token, done.stdout + done.stderr + "\n".join(self.read("calls")))

    def test_the_token_is_made_once_on_faasd(self):
        self.faasd(FORWARDER_URL="http://127.0.0.1:1")
        token = self.deployed()["secrets"]["event-token"]
        self.assertRegex(token, r"^\w{32}$")
        self.assertEqual(self.faasd().returncode, 0)
        self.assertEqual(self.deployed()["secrets"]["event-token"], token)

    def test_no_forwarder_runs_with_another_token_than_functions_ask_for(self):
        self.up()
        self.assertFalse([c for c in self.read("calls") if " scale " in c])
        cluster = self.applied()
        cluster["openfaas Secret. event-token"]["data"]["EVENT_TOKEN"] = base64.b64encode(b"another").decode()
        (self.fake / "cluster.json").write_text(json.dumps(cluster))
        before = self.deployments()
        # The forwarder's pod does not stop, so functions must keep the token that it sends.
        self.without("pod/forwarder-1", file="pod")
        done = self.up(TIMEOUT="2")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("still there after 2 s: pod/forwarder-1", done.stderr)
        self.assertEqual(self.deployments(), before)
        self.without(file="pod")
        done = self.up()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len([c for c in self.read("calls") if "scale deployment/forwarder --replicas=0" in c]), 2)
        self.assertEqual(self.deployed()["secrets"]["event-token"], "another")

    def test_no_token_is_made_on_faasd_while_a_forwarder_runs_without_it(self):
        for _ in range(2):
            done = self.faasd()
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("cannot know the token", done.stderr)
            self.assertEqual(self.deployments(), [])
            self.assertNotIn("event-token", self.deployed()["secrets"])

    def test_faasd_needs_no_cluster(self):
        self.faasd(FORWARDER_URL="http://127.0.0.1:1")
        done = self.faasd()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.deployed()["secrets"]["lambda-ingest"], "LOG_URL=kafka://k.example.com:9092/user")
        self.assertEqual(self.read("calls"), [])

    def test_each_function_of_faasd_gets_its_own_lines_of_the_configuration(self):
        config = ("# Ours\nexport LOG_URL = 'kafka://k.example.com/user?ssl.ca.pem=$(CA)'\nCA='---A\nMYSQL_PASSWORD=in a value\nB'\n"
                  'MASTER_URL=mysql://$(USER):$(MYSQL_PASSWORD)@m.example.com/lambda\nUSER="a \\" b\nc"\nMYSQL_PASSWORD=\'x\'\n'
                  "VIEWS_URL=cassandra://c.example.com/lambda\nSPEED_RETENTION=1d\nGATEWAY_PASSWORD=geheim\nLOG_LEVEL=debug\n")
        self.faasd(config=config, FORWARDER_URL="http://127.0.0.1:1")
        secrets = self.deployed()["secrets"]
        log = config[config.index("export"):config.index("MASTER_URL")] + "LOG_LEVEL=debug"
        self.assertEqual(secrets["lambda-ingest"], log)
        self.assertEqual(secrets["lambda-forwarder"], log.replace("LOG_LEVEL", "GATEWAY_PASSWORD=geheim\nLOG_LEVEL"))
        self.assertEqual(secrets["lambda-store"], config[config.index("MASTER_URL"):config.index("VIEWS_URL")] + "LOG_LEVEL=debug")
        self.assertEqual(self.keys(secrets["lambda-count"]), ["LOG_LEVEL", "SPEED_RETENTION", "VIEWS_URL"])

    def test_the_first_up_on_faasd_says_at_once_how_to_start_the_forwarder(self):
        self.without("forwarder", file="broken")
        begun = time.monotonic()
        done = self.faasd(TIMEOUT="60")
        self.assertLess(time.monotonic() - begun, 50)
        self.assertNotEqual(done.returncode, 0)
        for words in ("systemctl enable --now lambda-forwarder", str(self.fake / "faasd.yaml"), "no forwarder answers"):
            self.assertIn(words, done.stderr)
        self.assertEqual(sorted(self.deployed()["functions"]), sorted(FUNCTIONS))
        self.assertNotIn("POST /function/ingest/user", self.read("requests"))

    def test_the_forwarders_file_names_the_image(self):
        for images, whole in (("registry.example.com/la", "registry.example.com/la"), ("somebody/la", "docker.io/somebody/la"),
                              ("localhost:5000/la", "localhost:5000/la")):
            self.faasd(IMAGES=images, TAG="7", FORWARDER_URL="http://127.0.0.1:1")
            service = yaml.safe_load((self.fake / "faasd.yaml").read_text())["services"]["forwarder"]
            self.assertEqual(service["image"], f"{whole}/forwarder:7")

    def test_images_must_be_named(self):
        for environment in ({}, {"ENVIRONMENT": "faasd"}):
            done = self.up(IMAGES="", **environment)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("missing: IMAGES", done.stderr)
        self.assertEqual([r for r in self.read("requests") if not r.startswith("GET")], [])

    def test_a_configuration_that_is_not_whole_is_refused_before_anything_is_made(self):
        cases = [("LOG_URL=kafka://k:9092/user\n", "missing: MASTER_URL"), (URLS.replace("VIEWS_URL", "VIEW_URL"), "missing: VIEWS_URL"),
                 (URLS.replace("kafka://k.example.com:9092/user", "''"), "missing: LOG_URL"),
                 (URLS.replace("MYSQL_PASSWORD='x'", ""), "missing: MYSQL_PASSWORD"), ("# LOG_URL=kafka://k\n", "missing: LOG_URL"),
                 (URLS.replace("cassandra://c.example.com:9042/lambda", "sqlite:views.db"), "missing: a server in VIEWS_URL")]
        for config, words in cases:
            with self.subTest(config):
                done = self.faasd(config=config)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(words, done.stderr)
                self.assertIn("nothing was changed", done.stderr)
        self.assertEqual([r for r in self.read("requests") if not r.startswith("GET")], [])

    def test_advice_for_faasd_knows_no_cluster(self):
        said = self.faasd(OPENFAAS_CONFIG=str(self.fake / "nobody")).stderr
        self.assertIn("that lets you in", said)
        self.assertIn("/var/lib/faasd/secrets/basic-auth-password", said)
        self.assertNotIn("kubectl", said)

    def test_what_is_not_counted_not_stored_or_dead_is_a_failure(self):
        cases = [("count", "analytics did not count the user"), ("store", "not stored within 3 s"), ("dead", "became a dead letter"),
                 ("forwarder", "no forwarder answers")]
        self.faasd(FORWARDER_URL="http://127.0.0.1:1")
        for broken, words in cases:
            with self.subTest(broken):
                self.without(broken, file="broken")
                done = self.faasd(TIMEOUT="3")
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(words, done.stderr)

    def test_a_forwarder_that_does_not_answer_is_a_failure_on_kubernetes_too(self):
        self.without("forwarder", file="broken")
        done = self.up()
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("no forwarder answers", done.stderr)

    def test_down_takes_the_forwarder_first_and_says_what_stays(self):
        self.up()
        done = self.down()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.deployed()["functions"], {})
        self.assertNotIn("openfaas Deployment.apps forwarder", self.applied())
        self.assertLess(done.stdout.index("== forwarder"), done.stdout.index("== functions"))
        for secret in ("lambda-ingest", "cassandra-ca", "event-token"):
            self.assertIn(f"the secret {secret} stays", done.stdout)
        self.assertEqual(sorted(self.deployed()["secrets"]), sorted(["cassandra-ca", "event-token", *[f"lambda-{name}" for name in FUNCTIONS]]))

    def test_down_with_the_data_takes_the_secrets(self):
        self.up()
        self.assertEqual(self.down(DATA="delete").returncode, 0)
        self.assertEqual(self.deployed()["secrets"], {})
        self.assertEqual(self.applied(), {})

    def test_down_with_a_function_that_stays_is_a_failure(self):
        self.faasd(FORWARDER_URL="http://127.0.0.1:1")
        self.without("remove", file="broken")
        done = self.down(ENVIRONMENT="faasd", FORWARDER_URL="http://127.0.0.1:1", TIMEOUT="2")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("still deployed after 2 s: ", done.stderr)
        self.assertIn("store", done.stderr)

    def test_down_on_faasd_leaves_all_while_the_forwarder_runs(self):
        self.faasd(FORWARDER_URL="http://127.0.0.1:1")
        done = self.down(ENVIRONMENT="faasd", FORWARDER_URL=self.url)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("systemctl disable --now lambda-forwarder", done.stderr)
        self.assertEqual(len(self.deployed()["functions"]), 5)
        self.without("forwarder", file="broken")
        done = self.down(ENVIRONMENT="faasd", FORWARDER_URL=self.url)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.deployed()["functions"], {})


if __name__ == "__main__":
    unittest.main(verbosity=1)
