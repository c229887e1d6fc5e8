"""phase6: one folder that holds everything a prediction needs, and nothing that does not belong to it."""

from pathlib import Path

from streetvision.bundle.format import (
    FUSION_DESCRIPTION,
    FUSION_WEIGHTS,
    MODEL_CHECKPOINT,
    MODEL_DESCRIPTION,
    write_archive,
    write_bundle,
)
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.policies import ScrcPolicy, ThresholdPolicy
from streetvision.io.atomic import sha256_file
from streetvision.io.validators import PolicyValidator
from streetvision.pipeline.artifacts import POLICY_ARTIFACTS
from streetvision.pipeline.settings import Phase6Config


def run(context: Context) -> Outcome:
    """Copy model and policy, seal them; the manifest of a bundle refuses a policy of another model."""
    schema, config = context.schema, context.settings(Phase6Config)
    artifacts = [schema.path(name) for name in POLICY_ARTIFACTS[config.policy]]
    policy = PolicyValidator().validate(artifacts[0])
    bundle = write_bundle(
        schema.export_dir,
        {
            MODEL_CHECKPOINT: _model_of(policy, schema),
            MODEL_DESCRIPTION: schema.model_config_json,
            **_fusion_of(policy, schema),
            **{path.name: path for path in artifacts},
        },
        policy=policy,
        class_names=context.class_names,
        data_fingerprint=context.fingerprint,
    )
    sealed = tuple(schema.export_dir / name for name in bundle.manifest.files)
    schema.bundle_archive.unlink(missing_ok=True)
    if config.archive:
        write_archive(bundle, schema.bundle_archive)
        sealed += (schema.bundle_archive,)
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    return Outcome(
        f"{schema.export_dir}  ({size / 1e6:.1f} MB, {len(bundle.manifest.files)} files, every one sealed)",
        {"bytes": size},
        extra_outputs=sealed,
    )


def _model_of(policy: ThresholdPolicy | ScrcPolicy, schema: ArtifactSchema) -> Path:
    """The model with the retrained head when the policy was fitted on its scores, else phase 1's."""
    retrained = schema.mac_cal_checkpoint
    is_its = retrained.is_file() and sha256_file(retrained) == policy.scores.model_sha256
    return retrained if is_its else schema.phase1_checkpoint


def _fusion_of(policy: ThresholdPolicy | ScrcPolicy, schema: ArtifactSchema) -> dict[str, Path]:
    """Phase 4c's fusion when the policy was fitted on fused scores."""
    fusion = policy.scores.fusion
    if fusion is None:
        return {}
    files = {FUSION_DESCRIPTION: schema.cvfm_config_json}
    return files if fusion.weights_sha256 is None else {**files, FUSION_WEIGHTS: schema.cvfm_weights}
