"""The command line: help, errors, exit codes and output."""

import csv
import io
import json
import subprocess
import sys

import pytest

import streetvision
from streetvision.cli.app import GROUPS, VERBS
from streetvision.contracts.errors import TRAIN_MODULES
from tests.conftest import TINY_MODEL


def run_watched(*arguments):
    """Run the command line in a process of its own; returns its output and the libraries that it loaded."""
    code = (
        "import sys\nfrom streetvision.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('loaded:', *sorted(name for name in sys.modules if '.' not in name))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    output, _, loaded = done.stdout.rpartition("loaded:")
    return output + done.stderr, set(loaded.split())


def test_help_names_every_verb_and_imports_no_torch():
    output, loaded = run_watched("--help")
    assert all(verb in output for verb in (*VERBS, *GROUPS))
    assert not loaded & {"torch", "lightning", "transformers", "timm", "hydra", "numpy", "pydantic", "rich"}


SLOW_TO_LOAD = {"torch", "torchvision", "lightning", "transformers", "timm", "scipy", "matplotlib"}


@pytest.mark.parametrize("words", [("train",), ("data", "check", "photos"), ("evaluate", "--bundle", "export")])
def test_without_the_extra_train_a_verb_ends_with_what_to_install(words):
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({sorted(TRAIN_MODULES)}))\n"
    code = f"{blocked}from streetvision.cli.app import main\nmain(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'streetvision[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_user_error_is_reported_before_heavy_imports(finished_run):
    output, loaded = run_watched("train", f"run_dir={finished_run}", "training.mode=froze")
    assert "did you mean 'frozen'?" in output
    assert not loaded & SLOW_TO_LOAD


def test_a_run_with_nothing_to_do_loads_nothing_heavy(finished_run):
    output, loaded = run_watched("train", f"run_dir={finished_run}", *TINY_MODEL)
    assert output.count("(unchanged)") == 5
    assert not loaded & SLOW_TO_LOAD


WORDS = [(verb,) for verb in VERBS] + [(group, verb) for group, (_, verbs) in GROUPS.items() for verb in verbs]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_verb_has_help(command, words):
    code, out, _ = command(*words, "--help")
    assert code == 0
    assert "Usage:" in out


@pytest.mark.parametrize("group", [(), *((group,) for group in GROUPS)], ids=" ".join)
def test_the_first_help_line_of_every_verb_fits_on_its_line(command, group):
    _, _, verbs = command(*group, "--help")[1].partition("Commands:")
    assert verbs
    assert "..." not in verbs


def test_an_unknown_verb_or_option_is_a_user_error(command):
    assert command("trian")[0] == 2
    assert command("train", "--epochs", "3")[0] == 2


def test_debug_shows_where_an_error_came_from():
    from streetvision.cli.app import main
    from streetvision.contracts.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["--debug", "train", "training.epoch=3"])


def test_an_interrupt_prints_how_to_resume(command, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("streetvision.pipeline.run.launch_training", interrupted)
    code, _, err = command("train")
    assert code == 130
    assert err.startswith("interrupted; run the same command again")


def test_doctor_names_the_device(command):
    code, out, _ = command("doctor")
    assert code == 0
    assert "torch" in out
    assert "device" in out


def test_predict_prints_json_lines_and_csv(command, finished_run, scenes):
    export = finished_run / "export"
    code, out, _ = command("predict", "--bundle", export, scenes / "images")
    predictions = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(predictions) == 160
    assert all(p["label"] == ["None", "Roadwork"][p["decision"]] for p in predictions)
    code, out, _ = command("predict", "--bundle", export, "--format", "csv", scenes / "images")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [float(row["probability"]) for row in rows] == [prediction["probability"] for prediction in predictions]


PAGE_OPTIONS = [
    ("--predictions", "p"),
    ("--count", 5),
    ("--second-opinion",),
    ("--show-model",),
    ("--seed", 0),
    ("--host", "127.0.0.1"),
    ("--port", 0),
]
PLAN_OPTIONS = [("--images", "pool"), ("--queue", "mixed")]


@pytest.mark.parametrize(
    ("action", "option"),
    [(("--export", "labels.json"), option) for option in (*PAGE_OPTIONS, *PLAN_OPTIONS, ("--labeler", "ann"))]
    + [(("--import", "labels.json"), option) for option in PAGE_OPTIONS]
    + [(("--second-opinion",), option) for option in (PAGE_OPTIONS[0], ("--show-model",), *PLAN_OPTIONS)]
    + [(("--queue", queue), ("--show-model",)) for queue in ("random", "abstained")],
)
def test_label_refuses_an_option_without_effect(command, action, option):
    code, _, err = command("label", *action, *option)
    assert code == 2
    assert f"{option[0]} has no effect with {action[0]}" in err


@pytest.mark.slow
def test_data_check_prints_counts(command, scenes, tmp_path):
    code, out, _ = command("data", "check", scenes, "--page", tmp_path / "check.html")
    assert code == 0
    assert "160: " in out
    assert "unusable      0" in out


def test_data_scenes_draws_a_data_set(command, tmp_path):
    settings = ["scenes.count=3", "scenes.width=64", "scenes.height=64"]
    code, _, _ = command("data", "scenes", tmp_path / "drawn", *settings)
    assert code == 0
    assert len((tmp_path / "drawn" / "index.csv").read_text().splitlines()) == 4


def test_a_log_holds_whole_lines_without_control_characters(finished_run, scenes, command):
    _, out, _ = command("train", f"data.root={scenes}", f"run_dir={finished_run}", *TINY_MODEL)
    assert "\x1b" not in out
    assert "\r" not in out
    assert out.count("(unchanged)") == 5


def test_the_help_of_bench_names_every_section(command):
    from benchmarks.run import SECTIONS

    words = command("dev", "bench", "--help")[1].replace(",", " ").split()
    assert set(SECTIONS) <= set(words)


def test_unprintable_names_are_escaped(monkeypatch):
    from streetvision.cli.errors import prepare_streams

    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    prepare_streams()
    print("caf\udce9 \N{CONSTRUCTION SIGN}", flush=True)  # noqa: T201
    assert written.getvalue() == b"caf\\udce9 \\U0001f6a7\n"


def test_the_version_is_printed(command):
    code, out, _ = command("--version")
    assert code == 0
    assert out == f"streetvision {streetvision.__version__}\n"
