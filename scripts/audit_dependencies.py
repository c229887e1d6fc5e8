"""Check the locked packages for known vulnerabilities; without a network, print that the audit was skipped."""

import json
import re
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parent.parent / "requirements.lock"
TIMEOUT = 120
"""Seconds."""
SKIPPED = "audit skipped: vulnerability database unreachable"
NETWORK_ERRORS = re.compile(
    r"your network may be blocking|requests\.exceptions\.(\w*Timeout|SSLError|(Connection|Proxy|ChunkedEncoding)Error)"
)
"""What pip-audit prints if it has no connection."""


def main() -> int:
    """Return the exit code: 1 if a locked package has a known vulnerability or the audit failed, else 0."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--disable-pip", "--progress-spinner=off", "-f=json"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)  # noqa: S603
    except subprocess.TimeoutExpired:
        return _print(SKIPPED, 0)
    try:
        packages = json.loads(process.stdout)["dependencies"]
    except (ValueError, KeyError):
        if NETWORK_ERRORS.search(process.stderr):
            return _print(SKIPPED, 0)
        return _print(f"audit failed:\n{process.stderr or process.stdout}", 1)
    vulnerable = [(p["name"], p["version"], v["id"]) for p in packages for v in p.get("vulns", ())]
    unchecked = sum("skip_reason" in package for package in packages)
    if unchecked == len(packages):
        return _print(SKIPPED, 0)
    for name, version, identifier in vulnerable:
        _print(f"audit: {name} {version} is vulnerable: {identifier}", 1)
    return _print(
        f"audit: {len(packages)} packages, {len(vulnerable)} vulnerabilities, {unchecked} packages not checked",
        bool(vulnerable),
    )


def _print(text: str, code: int) -> int:
    sys.stdout.write(f"{text}\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
