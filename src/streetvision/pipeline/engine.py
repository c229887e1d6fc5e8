"""Runs phases in the order of the data flow. A phase is skipped if the digests of its inputs and outputs match."""

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, unknown_name
from streetvision.contracts.phase import Context, Phase
from streetvision.contracts.policies import FileDigest
from streetvision.contracts.settings import result_affecting
from streetvision.contracts.split_contracts import MAY_OPEN, Split
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.io.atomic import read_json, remove_stray_temps, sha256_json, write_json_atomic
from streetvision.io.lock import run_lock
from streetvision.io.manifests import (
    StepManifest,
    code_sha256,
    create_step_manifest,
    file_digest,
    read_manifest,
    relative,
)
from streetvision.pipeline.console import Console

TITLE_WIDTH = 10


def phase_order(requested: Iterable[str], phases: Mapping[str, Phase]) -> list[Phase]:
    """The requested phases, each after those that make its inputs.

    The data phase is added if one of them trains. The other phases use splits.json as it is.

    Raises:
        ConfigError: A phase does not exist.
    """
    names = set(requested)
    for name in names:
        if name not in phases:
            raise unknown_name("phase", name, phases)
    if needs_data(names):
        names.add("data")
    waiting = [phase for name, phase in phases.items() if name in names]
    order: list[Phase] = []
    while waiting:
        pending = {artifact for phase in waiting for artifact in phase.outputs}
        ready = next(phase for phase in waiting if not pending & set(phase.inputs))
        waiting.remove(ready)
        order.append(ready)
    return order


def needs_data(requested: Iterable[str]) -> bool:
    """Whether one of the requested phases opens TRAIN, and so needs the data set itself."""
    return any(Split.TRAIN in MAY_OPEN.get(name, frozenset()) for name in requested)


@dataclass(frozen=True)
class Engine:
    """Runs phases in one run folder."""

    schema: ArtifactSchema
    phases: Mapping[str, Phase]
    """All phases, to find the one that makes a missing artifact."""
    configs: Mapping[type[BaseModel], BaseModel]
    console: Console

    def run(self, phases: Sequence[Phase]) -> None:
        """Run `phases` in their order, with the lock of the run folder."""
        self.schema.ensure_output_dir()
        with run_lock(self.schema.lock_file):
            remove_stray_temps(self.schema.output_dir)
            try:
                for phase in phases:
                    self._run_phase(phase)
            finally:
                # A mistyped command leaves no empty run folder.
                if list(self.schema.output_dir.iterdir()) == [self.schema.lock_file]:
                    self.schema.lock_file.unlink()
                    self.schema.output_dir.rmdir()

    def _run_phase(self, phase: Phase) -> None:
        context = self.context(phase)
        # phase4a_explora -> phase4a, evaluate_data -> evaluate
        label = phase.id.partition("_")[0]
        title = "" if phase.title == label else phase.title
        needs = phase.inputs + (phase.optional_inputs(context) if phase.optional_inputs else ())
        inputs = dict(self._verified_input(phase, name) for name in needs)
        external = phase.external_digest(context) if phase.external_digest else None
        if (finished := self._unchanged(phase, inputs, external)) is not None:
            self.console.line(label, f"{title:<{TITLE_WIDTH}}{finished.summary}  (unchanged)")
            return
        # The manifest is written last. Until then the earlier one describes the run; its digests show which of its
        # outputs this phase has written again.
        earlier = self._earlier_outputs(phase)
        started = time.perf_counter()
        outcome = phase.run(context)
        seconds = time.perf_counter() - started
        manifest = create_step_manifest(
            phase.id,
            root=self.schema.output_dir,
            config={kind.__name__: self.configs[kind].model_dump(mode="json") for kind in phase.config},
            config_sha256=self._settings_sha256(phase),
            inputs=inputs,
            outputs=[*map(self.schema.path, phase.outputs), *outcome.extra_outputs],
            summary=outcome.summary,
            metrics=outcome.metrics,
            external_sha256=external,
            duration_seconds=seconds,
        )
        write_json_atomic(self.schema.manifest(phase.id), manifest.model_dump(mode="json"))
        for path in earlier - {self.schema.output_dir / name for name in manifest.outputs}:
            path.unlink(missing_ok=True)
        self.console.line(label, f"{title:<{TITLE_WIDTH}}{outcome.summary}", seconds=seconds)

    def _earlier_outputs(self, phase: Phase) -> set[Path]:
        """The outputs of the last run of `phase` that are in its folder."""
        folder = self.schema.folder(phase.id).resolve()
        try:
            outputs = read_manifest(self.schema.manifest(phase.id)).outputs
        except ArtifactError:
            return set()
        paths = {self.schema.output_dir / name for name in outputs}
        return {path for path in paths if path.parent.resolve().is_relative_to(folder)}

    def context(self, phase: Phase) -> Context:
        """The context that `phase` runs in: its declared settings, and the splits that it may open."""
        return Context(
            phase=phase.id,
            schema=self.schema,
            progress=self.console,
            configs={kind: self.configs[kind] for kind in phase.config},
            load_partition=lambda: partition_from_json(read_json(self.schema.splits_json), self.schema.splits_json),
        )

    def _settings_sha256(self, phase: Phase) -> str:
        return sha256_json({kind.__name__: result_affecting(self.configs[kind]) for kind in phase.config})

    def _verified_input(self, phase: Phase, name: str) -> tuple[str, FileDigest]:
        """Relative path and digest of an input, verified against the manifest of the phase that made it."""
        path = self.schema.path(name)
        short = relative(path, self.schema.output_dir)
        maker = next(other for other in self.phases.values() if name in other.outputs + other.optional_outputs)
        settings = [f"run_dir={self.schema.output_dir}", f"pipeline.phases=[{maker.id},{phase.id}]"]
        rerun = f"`{shlex.join(['streetvision', 'train', *settings])}` and the settings of the run"
        if not self.schema.manifest(maker.id).exists():
            raise ArtifactError(
                f"{phase.id} needs {short} of {maker.id}, which this run does not have",
                f"run both phases with {rerun}, or set run_dir=... to a run that has it",
            )
        recorded = read_manifest(self.schema.manifest(maker.id)).outputs.get(short)
        if recorded is None or not path.is_file() or file_digest(path) != recorded:
            raise ArtifactError(
                f"{str(path)!r} was changed or removed after {maker.id} wrote it", f"make it again with {rerun}"
            )
        # An evaluation takes a finished run as it is.
        evaluates = Split.VAL_TEST in MAY_OPEN.get(phase.id, frozenset())
        if not evaluates and (changed := changed_input(self.schema, self.phases, maker.id)) is not None:
            raise ArtifactError(
                f"{short} was made from an earlier {changed}, which has changed since", f"make it again with {rerun}"
            )
        return short, recorded

    def _unchanged(self, phase: Phase, inputs: Mapping[str, FileDigest], external: str | None) -> StepManifest | None:
        """The manifest of the last run of `phase`, if another run would give the same result."""
        try:
            manifest = read_manifest(self.schema.manifest(phase.id))
        except ArtifactError:
            return None
        root = self.schema.output_dir
        outputs = [root / name for name in manifest.outputs]
        unchanged = (
            manifest.code_sha256 == code_sha256()
            and manifest.config_sha256 == self._settings_sha256(phase)
            and manifest.external_sha256 == external
            and all(path.is_file() for path in outputs)
            and manifest.inputs == inputs
            and manifest.outputs == {relative(path, root): file_digest(path) for path in outputs}
            and set(manifest.outputs) >= {relative(self.schema.path(name), root) for name in phase.outputs}
        )
        return manifest if unchanged else None


def changed_input(schema: ArtifactSchema, phases: Mapping[str, Phase], phase: str) -> str | None:
    """Return an input of a finished phase that another phase has made again since, or None."""
    manifests = [schema.manifest(name) for name in phases if schema.manifest(name).is_file()]
    present = {name: digest for path in manifests for name, digest in read_manifest(path).outputs.items()}
    inputs = read_manifest(schema.manifest(phase)).inputs
    return next((name for name, digest in inputs.items() if present.get(name, digest) != digest), None)
