"""phase6: export the model and the policy as one self-contained folder."""

from streetvision.bundle.format import (
    FUSION_DESCRIPTION,
    FUSION_WEIGHTS,
    MODEL_CHECKPOINT,
    MODEL_DESCRIPTION,
    write_archive,
    write_bundle,
)
from streetvision.bundle.reference import REFERENCE, read_reference
from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.policies import ScrcPolicy
from streetvision.io.atomic import sha256_file
from streetvision.io.validators import PolicyValidator
from streetvision.pipeline.artifacts import POLICY_ARTIFACTS
from streetvision.pipeline.fold_models import check_fold_models
from streetvision.pipeline.scores import open_classifier
from streetvision.pipeline.settings import Phase6Config


def run(context: Context) -> Outcome:
    """Write the bundle: model, fusion if there is one, policy, and the digest of each file."""
    schema, config = context.schema, context.settings(Phase6Config)
    policy_files = [schema.path(name) for name in POLICY_ARTIFACTS[config.policy]]
    policy = PolicyValidator().validate(policy_files[0])

    if policy.scores.fold_models:
        check_fold_models(schema, policy.scores, open_classifier(context.schema, schema.phase1_checkpoint))

    # The policy names the scores that it was fitted on, and so the model and the fusion to export.
    retrained = schema.mac_cal_checkpoint
    from_retrained = retrained.is_file() and sha256_file(retrained) == policy.scores.model_sha256
    files = {
        MODEL_CHECKPOINT: retrained if from_retrained else schema.phase1_checkpoint,
        MODEL_DESCRIPTION: schema.model_config_json,
        **{path.name: path for path in policy_files},
    }
    if policy.scores.fusion is not None:
        files[FUSION_DESCRIPTION] = schema.cvfm_config_json
        if policy.scores.fusion.weights_sha256 is not None:
            files[FUSION_WEIGHTS] = schema.cvfm_weights
    if schema.seen_images.is_file():
        files[schema.seen_images.name] = schema.seen_images
    if isinstance(policy, ScrcPolicy):
        reference = read_reference(schema.monitoring_reference)
        if reference.header.scores_sha256 != policy.scores.sha256:
            raise ArtifactError(
                f"{str(schema.monitoring_reference)!r} belongs to another policy", "run phase5 and phase6 again"
            )
        files[REFERENCE] = schema.monitoring_reference
    # Raises ArtifactError if one of the files is not the one that the policy names.
    bundle = write_bundle(
        schema.export_dir,
        files,
        policy=policy,
        class_names=context.class_names,
        data_fingerprint=context.fingerprint,
        split_sha256=context.split_sha256,
    )
    outputs = [schema.export_dir / name for name in bundle.manifest.files]
    schema.bundle_archive.unlink(missing_ok=True)
    if config.archive:
        write_archive(bundle, schema.bundle_archive)
        outputs.append(schema.bundle_archive)
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    return Outcome(
        f"{schema.export_dir} ({size / 1e6:.1f} MB, {len(bundle.manifest.files)} files)",
        {"bytes": size},
        extra_outputs=tuple(outputs),
    )
