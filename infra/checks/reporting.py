"""Tests the report of what ran and what did not: report.sh's table, and its exit status with CI=true."""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent / "report.sh"


class Report(unittest.TestCase):
    def table(self, commands, ci):
        with tempfile.NamedTemporaryFile() as file:
            return subprocess.run(["bash", "-euc", f". {SCRIPT}; {{ {commands}; }} >/dev/null; print_report"], check=False,
                                  capture_output=True, text=True, env={**os.environ, "CHECK_REPORT": file.name, "CI": ci})

    def test_what_ran_and_what_did_not_are_listed_once(self):
        done = self.table("ran tests; ran tests; missing schemas a feature; missing schemas a feature", "true")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count("  tests\n"), 1)
        self.assertEqual(done.stdout.count("a feature (SCHEMAS=DIR names"), 1)

    def test_a_package_that_could_be_had_is_a_failure_of_ci_alone(self):
        for kind in ("debian", "crates.io", "go", "maven"):
            for ci, status in (("true", 1), ("", 0)):
                done = self.table(f"missing {kind} a tool", ci)
                self.assertEqual(done.returncode, status, kind + done.stderr)
                self.assertIn("  a tool (", done.stdout)

    def test_what_is_no_package_is_no_failure(self):
        for kind in ("schemas", "root", "images", "services", "python", "kubectl"):
            done = self.table(f"missing {kind} something", "true")
            self.assertEqual(done.returncode, 0, kind)
            self.assertRegex(done.stdout, r"  something \(\w")

    def test_what_the_services_step_ran_is_not_missing(self):
        self.assertIn("outages", self.table("missing services outages", "").stdout)
        done = self.table("missing services outages; ran the real services", "")
        self.assertNotIn("outages", done.stdout)
        self.assertIn("nothing was left out", done.stdout)

    def test_python_and_shell_write_the_same_line(self):
        with tempfile.NamedTemporaryFile("r") as file:
            env = {**os.environ, "CHECK_REPORT": file.name}
            subprocess.run(["bash", "-euc", f". {SCRIPT}; missing go x y"], env=env, check=True, capture_output=True)
            code = "import report; report.not_run('go', 'x y')"
            subprocess.run(["python", "-c", code], env=env, check=True, capture_output=True, cwd=SCRIPT.parent)
            self.assertEqual(file.read().splitlines(), ["not\tgo\tx y"] * 2)


if __name__ == "__main__":
    unittest.main(verbosity=1)
