"""Fusion of the views of one image in NumPy, for runtimes without PyTorch; the same mathematics as `models.fusion`.

Shapes: V views that are not masked, N views of the description, P width of a view's features, L latent width, T patches
of a dense pass, Q width of a patch's features, K linear outputs of a tile or patch.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit, log_softmax, logsumexp, softmax

from streetvision.contracts.errors import ArtifactError
from streetvision.eval.counts import FloatArray
from streetvision.io.arrays import read_arrays
from streetvision.models.config import (
    AnyEvidencePoolingConfig,
    FusionConfig,
    FusionDescription,
    FusionMode,
    GatedAttentionConfig,
    TopKConfig,
)
from streetvision.models.views import ViewArrays, evidence_sharpness, patch_grid, patch_mask, view_distances

MIN_LOG_ODDS = -80.0
"""Lower bound of a view's log-odds in noisy_or; exp(-80) is practically 0."""
DERIVATIVE_STEP = 1e-4
LAYER_NORM_EPSILON = 1e-5
EXPORT_AGAIN = "export the bundle again"


class FusedViews(NamedTuple):
    """Result of a fusion for one image."""

    logits: FloatArray
    """(2,)"""
    weights: FloatArray
    """(V,) influence of each view on the fused logits; of a dense pass (1 + T,)."""
    view_logits: FloatArray
    """(V, 2) of each view; of a dense pass (1 + T, 2), as in `models.fused.FusionOutput`."""
    mask: NDArray[np.bool_]
    """(V,) or (1 + T,): False for patches of padding."""


def simple_mean(logits: FloatArray, content: FloatArray, config: FusionConfig) -> FloatArray:  # noqa: ARG001
    """Mean of the logits."""
    mean: FloatArray = logits.mean(axis=0)
    return mean


def weighted_uncertainty(logits: FloatArray, content: FloatArray, config: FusionConfig) -> FloatArray:  # noqa: ARG001
    """Mean of the logits, weighted by certainty: the softmax over views of -entropy / temperature."""
    log_p = log_softmax(logits, axis=-1)
    entropy = -(np.exp(log_p) * log_p).sum(axis=-1)  # (V,), nats
    mean: FloatArray = softmax(-entropy / config.temperature) @ logits
    return mean


def content_aware(logits: FloatArray, content: FloatArray, config: FusionConfig) -> FloatArray:  # noqa: ARG001
    """Mean of the logits, weighted by the fraction of each view that is not padding."""
    mean: FloatArray = (content / content.sum()) @ logits
    return mean


def top_k(logits: FloatArray, content: FloatArray, config: FusionConfig) -> FloatArray:  # noqa: ARG001
    """Mean of the logits of the k views with the highest log-odds of class 1."""
    order = np.argsort(logits[:, 0] - logits[:, 1], kind="stable")
    mean: FloatArray = logits[order[: config.k]].mean(axis=0)
    return mean


def max_evidence(logits: FloatArray, content: FloatArray, config: FusionConfig) -> FloatArray:
    """Logits of the view with the highest log-odds of class 1."""
    return top_k(logits, content, config.model_copy(update={"k": 1}))


def noisy_or(logits: FloatArray, content: FloatArray, config: FusionConfig) -> FloatArray:  # noqa: ARG001
    """Probability that at least one view is positive, if views are independent: p = 1 - prod(1 - p_v).

    References:
        Pearl 1988, Probabilistic Reasoning in Intelligent Systems, section 4.3.2.
    """
    if len(logits) == 1:
        only_view: FloatArray = logits[0]
        return only_view
    log_odds = logits[:, 1] - logits[:, 0]
    # -log(1 - p) = sum of softplus(log-odds). Below MIN_LOG_ODDS exp would round to 0 and its logarithm to -inf.
    total = np.logaddexp(0, np.maximum(log_odds, MIN_LOG_ODDS)).sum()
    # logit(p) = log(exp(total) - 1), in a form that does not overflow.
    fused = total + np.log(-np.expm1(-total))
    fused_logits: FloatArray = logits.mean() + np.array([-fused / 2, fused / 2])
    return fused_logits


FUSIONS: Mapping[FusionMode, Callable[[FloatArray, FloatArray, FusionConfig], FloatArray]] = MappingProxyType(
    {
        "simple_mean": simple_mean,
        "weighted_uncertainty": weighted_uncertainty,
        "content_aware": content_aware,
        "top_k": top_k,
        "max": max_evidence,
        "noisy_or": noisy_or,
    }
)
"""Name -> (logits (V, 2), content (V,), settings) -> fused logits (2,); the names of `models.fusion.FUSIONS`."""


# The functions in EVIDENCE have the same arguments: outputs (T, K), T of the description, settings and weights.
def lse(
    outputs: FloatArray,
    instances: int,
    config: AnyEvidencePoolingConfig,  # noqa: ARG001
    weights: Mapping[str, NDArray[np.float32]],  # noqa: ARG001
) -> tuple[float, FloatArray]:
    """log(mean of exp(beta * score)) / beta, with beta = log(T)."""
    beta = evidence_sharpness(instances)
    scaled = beta * outputs[:, 0]
    return float(logsumexp(scaled) - np.log(len(scaled))) / beta, softmax(scaled)


def top_k_evidence(
    outputs: FloatArray,
    instances: int,  # noqa: ARG001
    config: AnyEvidencePoolingConfig,
    weights: Mapping[str, NDArray[np.float32]],  # noqa: ARG001
) -> tuple[float, FloatArray]:
    """The mean of the k largest scores."""
    assert isinstance(config, TopKConfig)
    scores = outputs[:, 0]
    kept = scores >= np.sort(scores)[-min(config.k, len(scores))]
    return float(scores[kept].mean()), kept / kept.sum()


def gated_attention(
    outputs: FloatArray,
    instances: int,  # noqa: ARG001
    config: AnyEvidencePoolingConfig,
    weights: Mapping[str, NDArray[np.float32]],
) -> tuple[float, FloatArray]:
    """The mean of the scores, weighted by gated attention."""
    assert isinstance(config, GatedAttentionConfig)
    content, gate = outputs[:, 1 : 1 + config.hidden], outputs[:, 1 + config.hidden :]
    shares: FloatArray = softmax((np.tanh(content) * expit(gate)) @ weights["attention"])
    return float(shares @ outputs[:, 0]), shares


EVIDENCE: Mapping[
    str,
    Callable[[FloatArray, int, AnyEvidencePoolingConfig, Mapping[str, NDArray[np.float32]]], tuple[float, FloatArray]],
] = MappingProxyType({"lse": lse, "top_k": top_k_evidence, "gated_attention": gated_attention})
"""The names of `models.evidence.EVIDENCE` -> (outputs (T, K), T, settings, weights) -> evidence and shares (T,)."""


class ViewFusion:
    """The fusion of a bundle.

    Args:
        description: How images are split into views and how these are fused.
        feature_dim: P; of a dense pass Q. None: as the weights have it.
        weights: File of a trained fusion in safetensors format; None for a fusion without parameters.

    Raises:
        ArtifactError: The weights are missing, damaged, or of another fusion.
    """

    def __init__(self, description: FusionDescription, feature_dim: int | None, weights: Path | None) -> None:
        self.description = description
        self._config = description.inference or FusionConfig()
        self._weights: dict[str, NDArray[np.float32]] | None = None
        if description.has_weights:
            if weights is None:
                raise ArtifactError(f"fusion mode {description.mode} needs weights, but no file is given")
            self._weights = _load_weights(weights, description, feature_dim)
            if description.views is not None:
                self._distances = view_distances(description.views)

    @property
    def width(self) -> int:
        """Width of the features of tiles or patches that evidence is read from."""
        assert self._weights is not None
        return int(self._weights["weight"].shape[1])

    def __call__(
        self,
        features: NDArray[np.float32],
        logits: NDArray[np.float32],
        views: ViewArrays,
        patches: NDArray[np.float32] | None = None,
    ) -> FusedViews:
        """Fuse the views of one image.

        Args:
            features: (V, P) of the views that are not masked.
            logits: (V, 2) of the same views.
            views: The N views of the image.
            patches: (T, Q) of a dense pass.
        """
        if self.description.pooling is not None:
            return self._with_evidence(features, logits.astype(np.float64), views, patches)
        left, top, right, bottom = views.content[views.mask].T
        height, width = views.pixels.shape[-2:]
        content = (right - left) * (bottom - top) / (height * width)  # the fraction that is not padding
        exact, used = logits.astype(np.float64), np.ones(len(logits), dtype=np.bool_)
        if self._weights is not None:
            inputs, indices = features.astype(np.float64), np.flatnonzero(views.mask)
            correction, weights = self._correction(inputs, content, indices)
            return FusedViews(_single_view(exact, views) + correction, weights, exact, used)
        fuse = FUSIONS[self._config.mode]
        return FusedViews(fuse(exact, content, self._config), self._influence(exact, content), exact, used)

    def _influence(self, logits: FloatArray, content: FloatArray) -> FloatArray:
        """The derivative (V,) of the fused log-odds by the log-odds of each view, from central differences."""
        fuse = FUSIONS[self._config.mode]
        derivatives = np.empty(len(logits))
        for view in range(len(logits)):
            step = np.zeros_like(logits)
            step[view] = (-DERIVATIVE_STEP / 2, DERIVATIVE_STEP / 2)
            change = fuse(logits + step, content, self._config) - fuse(logits - step, content, self._config)
            derivatives[view] = (change[1] - change[0]) / (2 * DERIVATIVE_STEP)
        return derivatives

    def _with_evidence(
        self, features: NDArray[np.float32], logits: FloatArray, views: ViewArrays, patches: NDArray[np.float32] | None
    ) -> FusedViews:
        """The single view and the evidence of tiles or patches, which is 0 without any."""
        w, config, is_tile = self._weights, self.description.pooling, np.flatnonzero(views.mask) > 0
        assert w is not None
        assert config is not None
        whole = _single_view(logits, views)
        instances, counted = features[is_tile], np.ones(int(is_tile.sum()), dtype=np.bool_)
        if patches is not None:
            size = self.description.dense_size
            assert size is not None
            grid = patch_grid(size, len(patches))
            instances, counted = patches, patch_mask(views.dense_content[0], size, grid)
        outputs = _linear(_normalise(instances.astype(np.float64)), w)
        margin, shares = 0.0, np.zeros(len(instances))
        if counted.any():
            total = self.description.tiles if patches is None else len(patches)
            margin, shares[counted] = EVIDENCE[config.name](outputs[counted], total, config, w)
        fused = _add_margin(whole, np.float64(margin))
        if patches is None:
            weights = np.ones(len(features))
            weights[is_tile] = shares
            return FusedViews(fused, weights, logits, np.ones(len(logits), dtype=np.bool_))
        view_logits = np.concatenate([whole[None], _add_margin(whole[None], outputs[:, 0])])
        return FusedViews(fused, np.append(1.0, shares), view_logits, np.append(True, counted))

    def _correction(
        self, features: FloatArray, content: FloatArray, indices: NDArray[np.intp]
    ) -> tuple[FloatArray, FloatArray]:
        """The trained correction (2,) of the global view's logits, and the weight (V,) of each view.

        `indices` (V,) are the positions of the V views among the N views.
        """
        w = self._weights
        assert w is not None
        hidden = _linear(_layer_norm(features, w, "encoder.0"), w, "encoder.1")
        activated = hidden * (1 + erf(hidden / np.sqrt(2))) / 2  # GELU
        encoded = _linear(activated, w, "encoder.3")  # (V, L)
        scores = w["view_scores"][indices] + w["content_slope"][indices] * content + encoded @ w["feature_score"]
        weights: FloatArray = softmax(scores)
        if "attention.slopes" in w:
            encoded = encoded + self._attention(encoded, indices)
        return _linear(weights @ encoded, w, "correction"), weights

    def _attention(self, tokens: FloatArray, indices: NDArray[np.intp]) -> FloatArray:
        """Self-attention over views (V, L), with the bias -slope * distance; see `CrossViewAttention`."""
        w = self._weights
        assert w is not None
        slopes = np.logaddexp(0, w["attention.slopes"].astype(np.float64))  # softplus keeps them positive
        views, width = tokens.shape
        qkv = _linear(_layer_norm(tokens, w, "attention.norm"), w, "attention.qkv")
        q, k, v = qkv.reshape(views, 3, len(slopes), -1).transpose(1, 2, 0, 3)  # (H, V, L / H) each
        bias = -slopes[:, None, None] * self._distances[np.ix_(indices, indices)]
        attention = softmax(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + bias, axis=-1)
        return _linear((attention @ v).swapaxes(0, 1).reshape(views, width), w, "attention.out")


def inference_keys(state: Mapping[str, object]) -> list[str]:
    """Return the keys of the state dict of a fusion that prediction needs: all except the decoders."""
    return [key for key in state if not key.startswith("decoder")]


def _load_weights(
    path: Path, description: FusionDescription, feature_dim: int | None
) -> dict[str, NDArray[np.float32]]:
    if feature_dim is None:
        weight = _read_file(path).get("weight", np.zeros((1, 0), np.float32))
        feature_dim = weight.shape[-1] if weight.ndim else 0
    if description.pooling is not None:
        return _read_weights(path, _evidence_shapes(description.pooling, feature_dim))
    assert description.trained is not None
    count, width, heads = 1 + description.tiles, description.trained.latent_dim, description.trained.attention_heads
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.0.weight": (feature_dim,),
        "encoder.0.bias": (feature_dim,),
        "encoder.1.weight": (width, feature_dim),
        "encoder.1.bias": (width,),
        "encoder.3.weight": (width, width),
        "encoder.3.bias": (width,),
        "view_scores": (count,),
        "content_slope": (count,),
        "feature_score": (width,),
        "correction.weight": (2, width),
        "correction.bias": (2,),
    }
    if heads:
        shapes |= {
            "attention.norm.weight": (width,),
            "attention.norm.bias": (width,),
            "attention.qkv.weight": (3 * width, width),
            "attention.qkv.bias": (3 * width,),
            "attention.out.weight": (width, width),
            "attention.out.bias": (width,),
            "attention.slopes": (heads,),
        }
    return _read_weights(path, shapes)


def _evidence_shapes(config: AnyEvidencePoolingConfig, width: int) -> dict[str, tuple[int, ...]]:
    if isinstance(config, GatedAttentionConfig):
        outputs = 1 + 2 * config.hidden
        return {"weight": (outputs, width), "bias": (outputs,), "attention": (config.hidden,)}
    return {"weight": (1, width), "bias": (1,)}


def _read_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """The arrays of a file, which must be float32 and have these names and shapes."""
    weights = _read_file(path)
    actual = {key: value.shape for key, value in weights.items()}
    if actual != shapes:
        key = next(key for key in {**shapes, **actual} if shapes.get(key) != actual.get(key))
        raise ArtifactError(
            f"{str(path)!r} does not fit the fusion: {key} is {actual.get(key)}, expected {shapes.get(key)}",
            EXPORT_AGAIN,
        )
    for key, value in weights.items():
        if value.dtype != np.float32:
            raise ArtifactError(f"{str(path)!r}: {key} is {value.dtype}, expected float32", EXPORT_AGAIN)
    return weights


def _read_file(path: Path) -> dict[str, NDArray[np.float32]]:
    return read_arrays(path, name="the weights of the fusion", hint=EXPORT_AGAIN).arrays


def _single_view(logits: FloatArray, views: ViewArrays) -> FloatArray:
    """The logits (2,) of the global view; the mean of the other views where it is masked."""
    whole: FloatArray = logits[0] if views.mask[0] else logits.mean(axis=0)
    return whole


def _add_margin(logits: FloatArray, margin: FloatArray | np.float64) -> FloatArray:
    """Add a margin (...) to the log-odds of logits (..., 2), whose mean does not change."""
    fused: FloatArray = logits + np.stack([-margin / 2, margin / 2], axis=-1)
    return fused


def _linear(x: FloatArray, weights: Mapping[str, NDArray[np.float32]], name: str = "") -> FloatArray:
    prefix = f"{name}." if name else ""
    result: FloatArray = x @ weights[f"{prefix}weight"].T + weights[f"{prefix}bias"]
    return result


def _layer_norm(x: FloatArray, weights: Mapping[str, NDArray[np.float32]], name: str) -> FloatArray:
    result: FloatArray = _normalise(x) * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return result


def _normalise(x: FloatArray) -> FloatArray:
    """A LayerNorm without parameters."""
    centered = x - x.mean(axis=-1, keepdims=True)
    result: FloatArray = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
    return result
