"""What a check leaves out, for the report of infra/checks/report.sh."""

import os


def not_run(kind, what):
    """Says it, and adds it to the report where there is one."""
    print(f"not run: {what}")
    if os.environ.get("CHECK_REPORT"):
        with open(os.environ["CHECK_REPORT"], "a", encoding="utf-8") as report:
            report.write(f"not\t{kind}\t{what}\n")
