"""The initial classifier of a training, and the key under which an interrupted training resumes."""

from collections.abc import Iterable

from streetvision.contracts.phase import Context
from streetvision.contracts.settings import result_affecting
from streetvision.contracts.split_contracts import Split
from streetvision.io.atomic import sha256_file, sha256_json
from streetvision.io.manifests import code_sha256
from streetvision.io.tensors import load_into, load_state
from streetvision.models.config import ModelConfig
from streetvision.models.module import Classifier, load_classifier
from streetvision.pipeline.artifacts import adapted_backbone, starts_adapted, weights_digest
from streetvision.pipeline.input_size import TOKENS, input_size


def initial_classifier(context: Context, *, tokens: int = TOKENS) -> Classifier:
    """A classifier with a new head from torch's global generator, on the adapted backbone if there is one.

    Args:
        context: Context of phase 1.
        tokens: Number of patches of an image where the settings leave it open.

    Raises:
        ArtifactError: The adapted weights do not fit the backbone. Keys and shapes are strict.
    """
    config = context.settings(ModelConfig)
    classifier = load_classifier(config, input_size(config, context.rows(Split.TRAIN), tokens=tokens))
    if (adapted := adapted_backbone(context)) is not None and starts_adapted(context):
        load_into(classifier.backbone, load_state(adapted), source=str(adapted))
    return classifier


def resume_key(context: Context, artifacts: Iterable[str]) -> str:
    """Digest of everything that affects the result of a training: settings, code, data, weights and `artifacts`."""
    settings = [result_affecting(section) for section in context.configs.values()]
    files = [context.schema.splits_json, *map(context.schema.path, artifacts)]
    digests = [sha256_file(path) for path in files]
    return sha256_json([code_sha256(), context.fingerprint, digests, weights_digest(context), settings])
