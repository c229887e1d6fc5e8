import json

import pytest

from streetvision.contracts.errors import ArtifactError
from streetvision.pipeline.test_access_log import record_test_access

A, B = "a" * 64, "b" * 64


def counts(access):
    return {entry["bundle_sha256"]: entry["count"] for entry in access.earlier}


def test_accesses_are_counted_by_bundle(tmp_path):
    path = tmp_path / "log.json"
    assert record_test_access(path, A).number == 1
    assert counts(record_test_access(path, B)) == {A: 1}
    third = record_test_access(path, A)
    assert third.number == 3
    assert counts(third) == {A: 1, B: 1}
    assert counts(record_test_access(path, B)) == {A: 2, B: 1}
    assert len(json.loads(path.read_text())) == 4


def test_the_latest_comes_first(tmp_path):
    path = tmp_path / "log.json"
    path.write_text(json.dumps([{"at": f"2026-01-0{day}", "bundle_sha256": of} for day, of in ((1, A), (2, B))]))
    assert [entry["last"] for entry in record_test_access(path, A).earlier] == ["2026-01-02", "2026-01-01"]


@pytest.mark.parametrize("content", ["{}", '[{"at": "now"}]', '[{"at": "now", "bundle_sha256": "x"}]'])
def test_a_damaged_log_is_never_replaced(tmp_path, content):
    path = tmp_path / "log.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match="not a valid log of VAL_TEST accesses"):
        record_test_access(path, A)
    assert path.read_text() == content
