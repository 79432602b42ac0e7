"""Adds what a check skips to the report of infra/checks/report.sh."""

import os


def not_run(kind, what):
    """Prints what was not run, and adds it to the report if CHECK_REPORT is set."""
    print(f"not run: {what}")
    if os.environ.get("CHECK_REPORT"):
        with open(os.environ["CHECK_REPORT"], "a", encoding="utf-8") as report:
            report.write(f"not\t{kind}\t{what}\n")
