import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from streetvision import load_bundle
from streetvision.bundle.predictor import ABSTAINED
from streetvision.contracts.errors import ArtifactError, DataError, MachineError


@pytest.fixture(scope="module")
def predictor(finished_run):
    return load_bundle(finished_run / "export")


@pytest.fixture(scope="module")
def path(scenes):
    return sorted((scenes / "images").iterdir())[0]


def test_all_types_of_an_image_have_the_same_prediction(predictor, path):
    image = Image.open(path).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).movedim(-1, 0)
    expected = predictor.predict(path)
    assert len(expected) == 1
    for value in (str(path), path.read_bytes(), image, array, tensor):
        assert predictor.predict(value)[0].probability == pytest.approx(expected[0].probability, abs=1e-6)


def test_predictions_do_not_depend_on_the_batch(predictor, scenes):
    paths = sorted((scenes / "images").iterdir())[:20]
    expected = [prediction.probability for prediction in predictor.predict(paths)]
    for size in (1, 7):
        probabilities = [prediction.probability for prediction in predictor.predict(paths, batch_size=size)]
        assert probabilities == pytest.approx(expected, abs=1e-6)


def test_label_decision_and_threshold_agree(predictor, scenes):
    for prediction in predictor.predict(sorted((scenes / "images").iterdir())[:30]):
        assert prediction.decision == (prediction.probability >= predictor.threshold)
        assert prediction.label == predictor.manifest.class_names[prediction.decision]


@pytest.fixture(scope="module")
def certified(predictor):
    """The same model with a policy that certifies a risk; it abstains in a narrow band of scores."""
    policy = predictor.manifest.policy
    control = policy.scrc_params.risk_control.model_copy(update={"certified": True, "lo": -0.125, "hi": 0.25})
    params = policy.scrc_params.model_copy(update={"risk_control": control})
    changed = copy.copy(predictor)
    changed.manifest = predictor.manifest.model_copy(
        update={"policy": policy.model_copy(update={"scrc_params": params})}
    )
    return changed


def test_the_policy_abstains_between_its_two_bounds(certified, predictor):
    margin = np.array([-0.25, -0.125, 0.0, 0.1875, 0.25, 0.5], dtype=np.float32)
    logits = np.stack([np.zeros_like(margin), margin], axis=1)
    assert certified.certified(logits).tolist() == [0, ABSTAINED, ABSTAINED, ABSTAINED, 1, 1]
    assert predictor.risk_control.certified or predictor.certified(logits).tolist() == [ABSTAINED] * 6


def test_every_image_has_a_decision_and_a_certified_prediction_if_the_policy_does_not_abstain(certified, scenes):
    paths = sorted((scenes / "images").iterdir())[:30]
    logits = certified.logits([certified.prepare(path) for path in paths])
    predictions, expected = certified.predict(paths), certified.certified(logits).tolist()
    assert [p.certified for p in predictions] == [None if c == ABSTAINED else c for c in expected]
    assert [p.decision for p in predictions] == [int(p.probability >= certified.threshold) for p in predictions]


def test_no_images_have_no_predictions(predictor):
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), torch.zeros(4, 4, 3, dtype=torch.uint8), b"no image"],
)
def test_other_values_are_rejected(predictor, image):
    with pytest.raises(DataError):
        predictor.predict(image)


def test_a_generator_is_read_in_batches(predictor, path):
    consumed = []

    def many():
        for i in range(100):
            consumed.append(i)
            yield path

    next(predictor.stream(many(), batch_size=4))
    assert len(consumed) <= 8


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG"])
def test_the_frames_of_one_pillow_image_are_predicted_in_their_order(predictor, path, kind):
    picture = Image.open(path).convert("RGB")
    frames = [picture.point(lambda value, factor=factor: value * factor // 12) for factor in range(12)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    expected = predictor.predict([frame.copy() for frame in ImageSequence.Iterator(Image.open(file))])
    assert predictor.predict(ImageSequence.Iterator(Image.open(file)), batch_size=4) == expected
    assert len({prediction.probability for prediction in expected}) == 12


def test_a_pillow_image_may_be_given_several_times(predictor, path):
    file = io.BytesIO()
    Image.open(path).resize((600, 400)).save(file, "PNG")
    first, *others = predictor.predict([Image.open(file)] * 6)
    assert others == [first] * 5 == predictor.predict([file.getvalue()] * 5)


def test_a_bundle_is_loaded_by_its_folder_or_its_json(finished_run, path):
    by_json = load_bundle(finished_run / "export" / "bundle.json")
    assert by_json.predict(path) == load_bundle(str(finished_run / "export")).predict(path)


def test_a_file_that_the_bundle_does_not_list_is_rejected(finished_run, tmp_path):
    import shutil

    export = shutil.copytree(finished_run / "export", tmp_path / "export")
    (export / "code.py").write_text("")
    with pytest.raises(ArtifactError, match=r"code\.py"):
        load_bundle(export)


def test_the_pickle_of_the_policy_is_never_opened(finished_run, path, monkeypatch):
    import pickle

    monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("a pickle was opened"))
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("a pickle was opened"))
    assert load_bundle(finished_run / "export").predict(path)


def test_a_batch_is_made_smaller_until_the_memory_of_the_gpu_suffices(predictor, scenes, monkeypatch):
    single, paths = predictor.with_single_view(), sorted((scenes / "images").iterdir())[:20]
    expected = [prediction.probability for prediction in single.predict(paths)]
    classifier = single.model.classifier
    embed, largest = classifier.embed, 3

    def embed_few(images):
        if len(images) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return embed(images)

    monkeypatch.setattr(classifier, "embed", embed_few)
    assert [prediction.probability for prediction in single.predict(paths)] == pytest.approx(expected, abs=1e-6)
    largest = 0
    for predict in (single.predict, single.explain):
        with pytest.raises(MachineError, match="GPU"):
            predict(paths[0])
