from pathlib import Path

import pytest

from streetvision.contracts.artifact_schema import PHASE_FOLDERS, ArtifactSchema
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.split_contracts import MAY_OPEN

ARTIFACTS = [name for name, value in vars(ArtifactSchema).items() if type(value).__name__ == "_ArtifactPath"]


def test_nothing_is_created_until_ensure_dirs_makes_every_folder(tmp_path):
    schema = ArtifactSchema(tmp_path / "run")
    assert schema.phase1_checkpoint == tmp_path / "run" / "phase1" / "model_best.pth"
    assert not schema.output_dir.exists()
    schema.ensure_dirs()
    assert schema.phase2_dir.is_dir()
    assert all((schema.output_dir / folder).is_dir() for folder in PHASE_FOLDERS.values())


def test_every_artifact_is_under_the_output_dir():
    schema = ArtifactSchema(Path("run"))
    assert len(ARTIFACTS) > 20
    for name in ARTIFACTS:
        assert schema.path(name).is_relative_to("run")


def test_every_rank_has_a_checkpoint_different_from_the_best():
    schema = ArtifactSchema(Path("run"))
    ranked = [schema.phase1_ranked_checkpoint(rank) for rank in (2, 3)]
    assert len({schema.phase1_checkpoint, schema.phase1_last_checkpoint, *ranked}) == 4
    assert {path.parent for path in ranked} == {schema.phase1_dir}


def test_an_attribute_that_is_not_a_path_is_rejected():
    with pytest.raises(AssertionError, match="ensure_dirs is not an artifact"):
        ArtifactSchema(Path("run")).path("ensure_dirs")


def test_every_phase_has_a_folder_of_its_own_for_its_manifest():
    schema = ArtifactSchema(Path("run"))
    writing = MAY_OPEN.keys() - {"export_runtime"}  # it writes a bundle outside the run folder
    manifests = {schema.manifest(phase) for phase in writing}
    assert len(manifests) == len(writing)


def test_an_output_dir_that_cannot_be_created_is_a_config_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be created"):
        ArtifactSchema(tmp_path / "file" / "run").ensure_dirs()
