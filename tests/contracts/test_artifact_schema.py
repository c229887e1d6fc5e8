from pathlib import Path

import pytest

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.split_contracts import MAY_OPEN


def test_nothing_is_created_until_it_is_asked_for(tmp_path):
    schema = ArtifactSchema(tmp_path / "run")
    assert schema.model_best == tmp_path / "run" / "phase1" / "model_best.pth"
    assert not schema.root.exists()
    schema.ensure_dirs()
    assert schema.root.is_dir()


def test_every_artifact_lies_under_the_root():
    schema = ArtifactSchema(Path("run"))
    properties = [name for name in dir(ArtifactSchema) if isinstance(getattr(ArtifactSchema, name), property)]
    assert len(properties) > 20
    for name in properties:
        assert schema.path(name).is_relative_to("run")


def test_every_rank_has_a_checkpoint_of_its_own_beside_the_best():
    schema = ArtifactSchema(Path("run"))
    ranked = [schema.model_ranked(rank) for rank in (2, 3)]
    assert len({schema.model_best, schema.model_last, *ranked}) == 4
    assert {path.parent for path in ranked} == {schema.phase1}


def test_what_is_no_path_is_no_artifact():
    with pytest.raises(AssertionError, match="ensure_dirs is not an artifact"):
        ArtifactSchema(Path("run")).path("ensure_dirs")


def test_every_phase_has_a_folder_of_its_own_for_its_manifest():
    schema = ArtifactSchema(Path("run"))
    writing = MAY_OPEN.keys() - {"export_runtime"}  # which writes a bundle of its own, outside of the run
    manifests = {schema.manifest(phase) for phase in writing}
    assert len(manifests) == len(writing)


def test_a_root_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be created"):
        ArtifactSchema(tmp_path / "file" / "run").ensure_dirs()
