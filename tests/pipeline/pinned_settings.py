"""Prove that every setting is seen: pin it to its default, and the test that is named for it must fail.

    python -m tests.pipeline.pinned_settings [KEY ...]

prints which keys are seen, and exits with 1 when one is not. As a pytest plugin it does the pinning.
"""

# ruff: noqa: T201

import os
import subprocess
import sys
from pathlib import Path

from streetvision.pipeline.config import settings
from tests.pipeline.test_settings_matter import SECTIONS, shown_by

TESTS = Path(__file__).parents[1]
PINNED = "STREETVISION_PINNED_SETTING"
FAILED = 1
"""pytest's exit code when tests ran and some failed."""


def pytest_configure():
    """Make the setting that the environment names read as its default, whatever it was given."""
    prefix, *path = os.environ[PINNED].split(".")
    model = SECTIONS[prefix]
    for name in path[:-1]:
        model = model.model_fields[name].annotation
    own, pinned = model.__getattribute__, model.model_fields[path[-1]].get_default(call_default_factory=True)
    model.__getattribute__ = lambda self, name: pinned if name == path[-1] else own(self, name)


def sees(key):
    """Whether the test that is named for `key` fails while it is pinned."""
    file, test = shown_by(key)
    run = [sys.executable, "-m", "pytest", str(TESTS / file), "-k", test, "-q", "-x", "-p", "no:cacheprovider"]
    environment = {**os.environ, PINNED: key, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*run, "-n", "0", "-p", __spec__.name], env=environment, capture_output=True, cwd=TESTS.parent
    )
    return done.returncode == FAILED


def main(asked):
    """Try every key, or those that were asked for."""
    keys = asked or [key for prefix, model in SECTIONS.items() for key, _ in settings(model, f"{prefix}.")]
    unseen = []
    for key in keys:
        unseen += [] if sees(key) else [key]
        print(f"{'not seen' if unseen[-1:] == [key] else 'seen':9} {key}", flush=True)
    print(f"{len(keys) - len(unseen)} of {len(keys)} settings are seen by the test that is named for them")
    return int(bool(unseen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
