"""The tables that `streetvision dev ablate` reads: pairs of settings, or systems."""

from importlib import resources
from pathlib import Path

from streetvision.contracts.errors import unknown_name
from streetvision.experiments.ablation_table import AblationTable
from streetvision.experiments.systems_table import SystemsTable
from streetvision.io.yaml_files import read_yaml, read_yaml_model


def read_table(name: str) -> AblationTable | SystemsTable:
    """Return the packaged table of that name, or the table in a YAML file.

    Raises:
        ConfigError: There is none, or it is not valid.
    """
    known = packaged_tables()
    path = Path(name) if name.endswith((".yaml", ".yml")) else known.get(name)
    if path is None:
        raise unknown_name("ablation table", name, [*known, "or a file NAME.yaml"])
    content = read_yaml(path)
    hint = "docs/results/ablations.md shows the format of a table"
    if isinstance(content, dict) and "systems" in content:
        return read_yaml_model(path, SystemsTable, hint=hint)
    return read_yaml_model(path, AblationTable, hint=hint)


def packaged_tables() -> dict[str, Path]:
    """Return name -> file of each table in the package."""
    folder = Path(str(resources.files("streetvision"))) / "configs" / "ablation"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}
