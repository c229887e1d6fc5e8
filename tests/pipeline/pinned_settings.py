"""Prove that every setting has an effect: pin it to its default, and the test that is named for it must fail.

    python -m tests.pipeline.pinned_settings [KEY ...]

prints the result for each key, and exits with 1 if a test does not fail. As a pytest plugin it pins the setting.
"""

# ruff: noqa: T201

import os
import subprocess
import sys
from pathlib import Path

from streetvision.pipeline.settings import all_settings
from tests.pipeline.test_settings_matter import keys_with_effect, shown_by

TESTS = Path(__file__).parents[1]
PINNED = "STREETVISION_PINNED_SETTING"
FAILED = 1
"""pytest's exit code if tests ran and some failed."""


def pytest_configure():
    """Pin the setting that the environment names: every model that declares it returns its default."""
    setting = all_settings()[os.environ[PINNED]]
    for model in setting.models.values():
        own, pinned = model.__getattribute__, model.model_fields[setting.name].get_default(call_default_factory=True)
        model.__getattribute__ = lambda self, name, own=own, pinned=pinned: (
            pinned if name == setting.name else own(self, name)
        )


def has_effect(key):
    """Whether the test that is named for `key` fails while it is pinned."""
    file, test = shown_by(key)
    run = [sys.executable, "-m", "pytest", str(TESTS / file), "-k", test, "-q", "-x", "-p", "no:cacheprovider"]
    environment = {**os.environ, PINNED: key, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*run, "-n", "0", "-p", __spec__.name], env=environment, capture_output=True, cwd=TESTS.parent
    )
    return result.returncode == FAILED


def main(keys):
    """Test every key, or only `keys`."""
    keys = keys or keys_with_effect()
    without = []
    for key in keys:
        without += [] if has_effect(key) else [key]
        print(f"{'no effect' if without[-1:] == [key] else 'effect':10} {key}", flush=True)
    print(f"{len(keys) - len(without)} of {len(keys)} settings have an effect that the named test shows")
    return int(bool(without))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
