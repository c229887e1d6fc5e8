import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from streetvision.eval.out_of_fold import out_of_fold_probabilities

RNG = np.random.default_rng(0)


def test_probabilities_are_those_of_a_standardized_balanced_logistic_regression():
    features, folds = RNG.normal(size=(200, 3)) * [1, 10, 100], np.arange(200) % 5
    labels = (features[:, 0] + RNG.normal(size=200) > 0.8).astype(np.int64)
    probabilities = out_of_fold_probabilities(features, labels, folds)
    rest = folds != 3
    standard = (features - features[rest].mean(axis=0)) / features[rest].std(axis=0)
    model = LogisticRegression(class_weight="balanced", tol=1e-10).fit(standard[rest], labels[rest])
    np.testing.assert_allclose(probabilities[~rest], model.predict_proba(standard[~rest])[:, 1], atol=1e-3)


def test_a_row_does_not_affect_its_own_probability():
    features, folds = RNG.normal(size=(60, 2)), np.arange(60) % 5
    labels = (features[:, 0] > 0).astype(np.int64)
    before = out_of_fold_probabilities(features, labels, folds)
    flipped = labels.copy()
    flipped[folds == 2] = 1 - flipped[folds == 2]
    after = out_of_fold_probabilities(features, flipped, folds)
    np.testing.assert_array_equal(before[folds == 2], after[folds == 2])
    assert np.abs(before - after).max() > 0.05


def test_a_constant_feature_and_a_missing_class():
    features = np.column_stack([np.ones(8), np.arange(8.0)])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert np.isfinite(out_of_fold_probabilities(features, labels, np.arange(8) % 2)).all()
    assert out_of_fold_probabilities(features, labels, labels).tolist() == pytest.approx([0.5] * 8)
