"""Try the built wheel in an empty environment: what it contains, and what the base predicts without PyTorch.

    python scripts/try_wheel.py outputs/dist

A bundle for ONNX Runtime is made with the packages of this environment. The environment of the wheel gets its packages
from the package index that uv uses.
"""

import argparse
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

SMALL_MODEL = [
    "model=random_small",
    "model.backbone.width=32",
    "model.backbone.depth=1",
    "model.backbone.heads=2",
    "model.image_size=64",
    "training=frozen",
    "data.protocol=split",
    "scenes.count=120",
    "scenes.width=96",
    "scenes.height=72",
    "phase2.n_resamples=100",
]
OUTSIDE = ("tests/", "benchmarks/", "scripts/", "docs/")
"""Folders that a wheel must not contain."""
PROGRAM = """
import os, sys, time
start = time.perf_counter()
import streetvision
predictor = streetvision.load_bundle(sys.argv[1])
predictor.predict(sys.argv[2])
seconds, cpu = time.perf_counter() - start, sum(os.times()[:2])
assert not {"torch", "torchvision", "sklearn", "matplotlib"} & set(sys.modules)
try:
    import resource
    memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
except ImportError:
    memory = "memory not known"
print(f"import and first prediction {seconds:.2f} s ({cpu:.2f} s of CPU time with the interpreter), {memory}")
"""


def main() -> None:
    """Try the only wheel in a folder; ends with an error if something fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path)
    (wheel,) = parser.parse_args().dist.glob("*.whl")
    unwanted = [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(OUTSIDE)]
    assert not unwanted, f"the wheel contains {unwanted[0]}"
    with TemporaryDirectory() as name:
        folder = Path(name)
        bundle, image = _make_bundle(folder)
        _run(sys.executable, "-m", "venv", folder / "venv")
        python = next(file for file in (folder / "venv").glob("*/python*") if file.is_file())
        uv = Path(sys.executable).with_name("uv")
        _run(uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, wheel)
        size = sum(file.stat().st_size for file in _packages(folder / "venv"))
        isolated = [python, "-I"]  # without PYTHONPATH, which may name the source
        _run(*isolated, "-c", PROGRAM, bundle, image)
        sys.stdout.write(f"installed {size / 1e6:.0f} MB; {_run(*isolated, '-c', PROGRAM, bundle, image)}")
        output = _run(*isolated, "-m", "streetvision", "predict", "--bundle", bundle, image)
        assert json.loads(output)["image"] == str(image)
        _run(*isolated, "-m", "streetvision", "doctor")
        _run(*isolated, "-c", "from streetvision.serving.server import create_app; import uvicorn")
        hint = _run(*isolated, "-m", "streetvision", "train", code=2)
        assert "streetvision[train]" in hint, hint


def _make_bundle(folder: Path) -> tuple[Path, Path]:
    command = [sys.executable, "-m", "streetvision"]
    run, bundle = folder / "run", folder / "onnx"
    _run(*command, "train", f"run_dir={run}", *SMALL_MODEL)
    _run(*command, "export", "--bundle", run / "export", "--out", bundle, "--runtime", "onnx")
    return bundle, min((run / "scenes" / "images").iterdir())


def _packages(venv: Path) -> list[Path]:
    """The files of the environment without those that pip and setuptools bring with it."""
    files = (file for file in venv.rglob("*") if file.is_file() and not file.is_symlink())
    return [file for file in files if not {"pip", "setuptools"} & set(file.parts)]


def _run(*command: object, code: int = 0) -> str:
    """The output of a command, which must end with exit code `code`."""
    process = subprocess.run(  # noqa: S603 (our own commands)
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert process.returncode == code, process.stdout
    return process.stdout


if __name__ == "__main__":
    main()
