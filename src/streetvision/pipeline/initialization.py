"""Where training starts: the classifier with its backbone's own weights, or with those that phase 4a adapted."""

from collections.abc import Iterable

from streetvision.contracts.phase import Context
from streetvision.contracts.settings import result_affecting
from streetvision.io.atomic import sha256_file, sha256_json
from streetvision.io.manifests import code_sha256
from streetvision.io.tensors import load_into, load_state
from streetvision.models.config import ModelConfig
from streetvision.models.module import Classifier, load_classifier
from streetvision.pipeline.artifacts import adapted_backbone, digest_of_weights


def initial_classifier(context: Context) -> Classifier:
    """A classifier with a new head, drawn from torch's global generator; raises ArtifactError for weights of another.

    The adapted backbone is read with strict keys and shapes.
    """
    classifier = load_classifier(context.settings(ModelConfig))
    if (adapted := adapted_backbone(context)) is not None:
        load_into(classifier.backbone, load_state(adapted), source=str(adapted))
    return classifier


def resume_key(context: Context, artifacts: Iterable[str]) -> str:
    """Digest of all that decides what a training gives: settings, code, data, weights, and what it reads of the run."""
    settings = [result_affecting(section) for section in context.configs.values()]
    files = [context.schema.splits_json, *map(context.schema.path, artifacts)]
    digests = [sha256_file(path) for path in files]
    return sha256_json([code_sha256(), context.fingerprint, digests, digest_of_weights(context), settings])
