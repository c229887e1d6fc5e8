import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from streetvision.eval.out_of_fold import fit_logistic, out_of_fold_probabilities

RNG = np.random.default_rng(0)


def test_the_fit_is_that_of_scikit_learn():
    features = RNG.normal(size=(200, 3))
    labels = (features[:, 0] + RNG.normal(size=200) > 0.8).astype(np.int64)
    fitted = fit_logistic(features, labels, ridge=2.0)
    model = LogisticRegression(C=0.5, class_weight="balanced", tol=1e-10).fit(features, labels)
    np.testing.assert_allclose(fitted, [*model.coef_[0], model.intercept_[0]], atol=1e-3)


def test_a_row_has_no_say_in_its_own_answer():
    features, folds = RNG.normal(size=(60, 2)), np.arange(60) % 5
    labels = (features[:, 0] > 0).astype(np.int64)
    before = out_of_fold_probabilities(features, labels, folds)
    turned = labels.copy()
    turned[folds == 2] = 1 - turned[folds == 2]
    after = out_of_fold_probabilities(features, turned, folds)
    np.testing.assert_array_equal(before[folds == 2], after[folds == 2])
    assert np.abs(before - after).max() > 0.05


def test_a_constant_feature_and_a_missing_class():
    features = np.column_stack([np.ones(8), np.arange(8.0)])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert np.isfinite(out_of_fold_probabilities(features, labels, np.arange(8) % 2)).all()
    assert out_of_fold_probabilities(features, labels, labels).tolist() == pytest.approx([0.5] * 8)
