import copy

import numpy as np
import pytest
import torch
from PIL import Image

from streetvision import load_bundle
from streetvision.bundle.predictor import ABSTAINED
from streetvision.contracts.errors import ArtifactError, DataError


@pytest.fixture(scope="module")
def predictor(finished_run):
    return load_bundle(finished_run / "export")


@pytest.fixture(scope="module")
def path(scenes):
    return sorted((scenes / "images").iterdir())[0]


def test_every_way_to_give_an_image_gives_the_same_answer(predictor, path):
    image = Image.open(path).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).movedim(-1, 0)
    expected = predictor.predict(path)
    assert len(expected) == 1
    for given in (str(path), path.read_bytes(), image, array, tensor):
        assert predictor.predict(given)[0].probability == pytest.approx(expected[0].probability, abs=1e-6)


def test_the_answer_does_not_depend_on_the_batch(predictor, scenes):
    paths = sorted((scenes / "images").iterdir())[:20]
    together = [answer.probability for answer in predictor.predict(paths)]
    for size in (1, 7):
        alone = [answer.probability for answer in predictor.predict(paths, batch_size=size)]
        assert alone == pytest.approx(together, abs=1e-6)


def test_label_decision_and_threshold_agree(predictor, scenes):
    for answer in predictor.predict(sorted((scenes / "images").iterdir())[:30]):
        assert answer.decision == (answer.probability >= predictor.threshold)
        assert answer.label == predictor.manifest.class_names[answer.decision]


@pytest.fixture(scope="module")
def careful(predictor):
    """The same model under a policy that certifies a risk: it answers outside of a narrow band of scores."""
    policy = predictor.manifest.policy
    control = policy.scrc_params.risk_control.model_copy(update={"certified": True, "lo": -0.125, "hi": 0.25})
    params = policy.scrc_params.model_copy(update={"risk_control": control})
    changed = copy.copy(predictor)
    changed.manifest = predictor.manifest.model_copy(
        update={"policy": policy.model_copy(update={"scrc_params": params})}
    )
    return changed


def test_between_the_two_ends_a_person_decides(careful, predictor):
    margin = torch.tensor([-0.25, -0.125, 0.0, 0.1875, 0.25, 0.5])
    logits = torch.stack([torch.zeros(6), margin], dim=1)
    assert careful.certified(logits).tolist() == [0, ABSTAINED, ABSTAINED, ABSTAINED, 1, 1]
    assert predictor.risk_control.certified or predictor.certified(logits).tolist() == [ABSTAINED] * 6


def test_every_image_gets_a_decision_and_the_certified_answer_if_there_is_one(careful, scenes):
    paths = sorted((scenes / "images").iterdir())[:30]
    logits = careful.logits(torch.stack([careful.prepare(path) for path in paths]))
    answers, certified = careful.predict(paths), careful.certified(logits).tolist()
    assert [answer.certified for answer in answers] == [None if c == ABSTAINED else c for c in certified]
    assert [answer.decision for answer in answers] == [int(a.probability >= careful.threshold) for a in answers]


def test_no_images_give_no_answers(predictor):
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), torch.zeros(4, 4, 3, dtype=torch.uint8), b"no image"],
)
def test_what_is_no_image_is_named(predictor, image):
    with pytest.raises(DataError):
        predictor.predict(image)


def test_a_generator_is_read_as_it_goes(predictor, path):
    taken = []

    def many():
        for i in range(100):
            taken.append(i)
            yield path

    next(predictor.stream(many(), batch_size=4))
    assert len(taken) <= 8


def test_a_bundle_is_named_by_its_folder_or_its_json(finished_run, path):
    by_json = load_bundle(finished_run / "export" / "bundle.json")
    assert by_json.predict(path) == load_bundle(str(finished_run / "export")).predict(path)


def test_a_file_that_the_bundle_does_not_name_is_refused(finished_run, tmp_path):
    import shutil

    export = shutil.copytree(finished_run / "export", tmp_path / "export")
    (export / "code.py").write_text("")
    with pytest.raises(ArtifactError, match=r"code\.py"):
        load_bundle(export)


def test_the_pickle_beside_the_policy_is_never_opened(finished_run, path, monkeypatch):
    import pickle

    monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("a pickle was opened"))
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("a pickle was opened"))
    assert load_bundle(finished_run / "export").predict(path)
