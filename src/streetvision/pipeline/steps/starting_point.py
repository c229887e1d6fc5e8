"""Where training starts: the classifier with its backbone's own weights, or with those that phase 4a adapted."""

from collections.abc import Iterable
from pathlib import Path

from streetvision.contracts.phase import Context, Phase
from streetvision.io.atomic import sha256_file, sha256_json
from streetvision.io.manifests import code_sha256
from streetvision.io.tensors import load_into, load_state
from streetvision.models.backbone import local_files
from streetvision.models.module import Classifier, ModelConfig, load_classifier


def starting_classifier(context: Context) -> Classifier:
    """A classifier with a new head, drawn from torch's global generator; raises ArtifactError for weights of another.

    The adapted backbone is read with strict keys and shapes.
    """
    classifier = load_classifier(context.settings(ModelConfig))
    if (adapted := adapted_backbone(context)) is not None:
        load_into(classifier.backbone, load_state(adapted), source=str(adapted))
    return classifier


def adapted_backbone(context: Context) -> Path | None:
    """The checkpoint of an adapted backbone that the settings name: another run's, or this run's own."""
    config = context.settings(ModelConfig)
    own = context.schema.explora_checkpoint if config.init_from_explora else None
    return config.explora_checkpoint_path or own


def adapted_here(context: Context) -> tuple[str, ...]:
    """The artifacts of this run that training starts from."""
    return ("explora_checkpoint",) if adapted_backbone(context) == context.schema.explora_checkpoint else ()


def resume_key(context: Context, phase: Phase, artifacts: Iterable[str]) -> str:
    """Digest of all that decides what a training gives: settings, code, data, weights, and what it reads of the run."""
    settings = [context.settings(kind).model_dump(mode="json") for kind in phase.config]
    files = [context.schema.splits, *map(context.schema.path, artifacts)]
    digests = [sha256_file(path) for path in files]
    return sha256_json([code_sha256(), context.fingerprint, digests, digest_of_weights(context), settings])


def digest_of_weights(context: Context) -> str:
    """Digest of the weight files outside the run that training starts from."""
    config = context.settings(ModelConfig)
    files = [*local_files(config.backbone)]
    digests = {path.name: sha256_file(path) for path in files}
    if config.explora_checkpoint_path is not None:
        digests["adapted"] = sha256_file(config.explora_checkpoint_path)
    return sha256_json(digests)
