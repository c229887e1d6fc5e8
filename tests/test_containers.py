"""The container files: what they start exists, and they run without rights that they do not need."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from yaml import safe_load, safe_load_all

from streetvision.cli.app import build_app
from streetvision.serving.launch import KEY_VARIABLE, serving_config

DOCKER = Path(__file__).parents[1] / "docker"
DOCKERFILES = ["Dockerfile.serve", "Dockerfile.train"]
DEPLOYMENT, SERVICE = safe_load_all((DOCKER / "kubernetes.yaml").read_text())
(POD,) = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
COMPOSE = safe_load((DOCKER / "compose.yaml").read_text())


def instruction(text, name):
    return re.findall(rf"^{name} (.*(?:\\\n.*)*)", text, re.M)


def run_command(text):
    """The memory limit and the settings of `docker run`."""
    limit, settings = re.findall(r"docker run .*--memory (\S+) .*streetvision-serve (.+)", text.replace("\\\n", ""))[0]
    return shlex.split(settings), limit


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        run_command((DOCKER / "Dockerfile.serve").read_text()),
        run_command((DOCKER.parent / "docs" / "how-to" / "containers.md").read_text()),
        (POD["args"], POD["resources"]["limits"]["memory"]),
        (COMPOSE["services"]["serve"]["command"], COMPOSE["services"]["serve"]["mem_limit"]),
    ],
)
def test_the_uploads_in_flight_fit_into_the_memory(settings, limit):
    config = serving_config(settings, api_key="x")
    assert limit in {"2Gi", "2g"}
    assert config.max_in_flight * config.max_megabytes * 1e6 < 2 * 2**30 / 2


def test_the_deployment_runs_the_image_that_the_documentation_builds():
    (built,) = re.findall(
        r"docker build .*serve -t (\S+) ", (DOCKER.parent / "docs" / "how-to" / "containers.md").read_text()
    )
    assert POD["image"].removesuffix(":latest") == built


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_as_a_user_that_is_not_root(name):
    text = (DOCKER / name).read_text()
    last_stage = text[text.rindex("FROM ") :]
    assert instruction(last_stage, "USER") == ["10001"]
    sources = {part for line in instruction(text, "COPY") if "--from" not in line for part in shlex.split(line)[:-1]}
    assert all((DOCKER.parent / source).exists() for source in sources)
    ignored = (DOCKER.parent / ".dockerignore").read_text().split()
    assert {f"!{source}" for source in sources} <= set(ignored)


def test_the_image_of_the_server_starts_a_valid_command():
    (entry,) = instruction((DOCKER / "Dockerfile.serve").read_text(), "ENTRYPOINT")
    program, verb, *options = safe_load(entry)
    command = typer.main.get_command(build_app())
    parsed = command.commands[verb].make_context(verb, options).params
    assert (program, verb, parsed["host"], parsed["port"]) == ("streetvision", "serve", "0.0.0.0", 8000)  # noqa: S104


def test_the_pod_is_restricted():
    spec = DEPLOYMENT["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert POD["securityContext"]["readOnlyRootFilesystem"]
    assert {volume["name"] for volume in spec["volumes"]} == {mount["name"] for mount in POD["volumeMounts"]}
    assert SERVICE["spec"]["selector"].items() <= DEPLOYMENT["spec"]["template"]["metadata"]["labels"].items()
    assert KEY_VARIABLE in {variable["name"] for variable in POD["env"]}


def test_the_composed_server_is_restricted_and_read_by_prometheus():
    serve = COMPOSE["services"]["serve"]
    assert serve["read_only"]
    assert serve["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for service in COMPOSE["services"].values() for port in service["ports"])
    (scrape,) = safe_load((DOCKER / "prometheus.yaml").read_text())["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["serve:8000"]}]
