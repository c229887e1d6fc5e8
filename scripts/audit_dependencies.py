"""Ask which locked packages are known to be vulnerable; without an answer say so and go on, as when offline."""

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parent.parent / "requirements.lock"
SECONDS = 120
NOBODY = "audit: not done, since nobody who knows of vulnerabilities could be asked"


def main() -> int:
    """1 when a locked package is known to be vulnerable, else 0."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--disable-pip", "--progress-spinner=off", "-f=json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)  # noqa: S603
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return _say(NOBODY, 0)
    known = [(p["name"], p["version"], v["id"]) for p in packages for v in p.get("vulns", ())]
    unanswered = sum("skip_reason" in package for package in packages)
    if unanswered == len(packages):
        return _say(NOBODY, 0)
    for name, version, identifier in known:
        _say(f"audit: {name} {version} is vulnerable: {identifier}", 1)
    return _say(
        f"audit: {len(packages)} packages, {len(known)} vulnerabilities, no answer for {unanswered}", bool(known)
    )


def _say(text: str, code: int) -> int:
    sys.stdout.write(f"{text}\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
