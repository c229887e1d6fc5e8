"""Runs phases in the order of the data, skips what is unchanged, and notices by digest what is not."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, unknown_name
from streetvision.contracts.phase import Context, Phase
from streetvision.contracts.policies import FileDigest
from streetvision.contracts.settings import result_affecting
from streetvision.contracts.split_contracts import MAY_OPEN, Partition, Split
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


def ordered(requested: Iterable[str], phases: Mapping[str, Phase]) -> list[Phase]:
    """The requested phases so that each comes after those that make what it needs; unknown names are an error.

    The data phase joins whenever one of them trains: the others take splits.json as it was sealed.
    """
    wanted = dict.fromkeys(requested)
    for name in wanted:
        if name not in phases:
            raise unknown_name("phase", name, phases)
    if trains(wanted):
        wanted["data"] = None
    waiting = [phase for name, phase in phases.items() if name in wanted]
    done: list[Phase] = []
    while waiting:
        ahead = {artifact for phase in waiting for artifact in phase.outputs}
        ready = next(phase for phase in waiting if not ahead & set(phase.inputs))
        waiting.remove(ready)
        done.append(ready)
    return done


def trains(requested: Iterable[str]) -> bool:
    """Whether one of the requested phases opens TRAIN, and so needs the data set itself."""
    return any(Split.TRAIN in MAY_OPEN.get(name, frozenset()) for name in requested)


@dataclass(frozen=True)
class Engine:
    """Runs phases in one run folder."""

    schema: ArtifactSchema
    phases: Mapping[str, Phase]
    """Every phase there is: it tells who makes a missing artifact."""
    configs: Mapping[type[BaseModel], BaseModel]
    console: Console

    def run(self, plan: Sequence[Phase]) -> None:
        """Run the phases of `plan` in turn, alone in the run folder."""
        self.schema.ensure_output_dir()
        with run_lock(self.schema.lock_file):
            remove_stray_temps(self.schema.output_dir)
            try:
                for phase in plan:
                    self._run_one(phase)
            finally:
                self._leave_no_empty_folder()

    def _leave_no_empty_folder(self) -> None:
        """A mistyped command must not leave a run folder in which nothing ever was."""
        if list(self.schema.output_dir.iterdir()) == [self.schema.lock_file]:
            self.schema.lock_file.unlink()
            self.schema.output_dir.rmdir()

    def _run_one(self, phase: Phase) -> None:
        context = self.context(phase)
        needs = phase.inputs + (phase.optional_inputs(context) if phase.optional_inputs else ())
        inputs = dict(self._checked_input(phase, name) for name in needs)
        external = phase.external_digest(context) if phase.external_digest else None
        path = self.schema.manifest(phase.id)
        if (fresh := self._fresh(phase, inputs, external)) is not None:
            self.console.line(phase.id, f"{fresh.summary}  (unchanged)")
            return
        path.unlink(missing_ok=True)
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
        write_json_atomic(path, manifest.model_dump(mode="json"))
        self.console.line(phase.id, f"{phase.title:<8}{outcome.summary}", seconds=seconds)

    def context(self, phase: Phase) -> Context:
        """What `phase` is handed."""
        return Context(
            phase=phase.id,
            schema=self.schema,
            progress=self.console,
            configs={kind: self.configs[kind] for kind in phase.config},
            load_partition=self._load_partition,
        )

    def _load_partition(self) -> Partition:
        return partition_from_json(read_json(self.schema.splits_json), self.schema.splits_json)

    def _settings_sha256(self, phase: Phase) -> str:
        return sha256_json({kind.__name__: result_affecting(self.configs[kind]) for kind in phase.config})

    def _checked_input(self, phase: Phase, name: str) -> tuple[str, FileDigest]:
        """The relative path and the seal of a needed artifact, which its maker's manifest vouches for."""
        path = self.schema.path(name)
        short = relative(path, self.schema.output_dir)
        maker = next(other for other in self.phases.values() if name in other.outputs + other.optional_outputs)
        again = f"pipeline.phases=[{maker.id},{phase.id}]"
        if not self.schema.manifest(maker.id).exists():
            raise ArtifactError(
                f"{phase.id} needs {short} of {maker.id}, and this run has none",
                f"run them together: {again}, or give run_dir= of a run that has it",
            )
        sealed = read_manifest(self.schema.manifest(maker.id)).outputs.get(short)
        if sealed is None or not path.is_file() or file_digest(path) != sealed:
            raise ArtifactError(
                f"{str(path)!r} is not what {maker.id} wrote: it was changed, damaged or removed since",
                f"make it again: {again}",
            )
        return short, sealed

    def _fresh(self, phase: Phase, inputs: Mapping[str, FileDigest], external: str | None) -> StepManifest | None:
        """The manifest of the last run of `phase`, if running it again would give the same."""
        try:
            manifest = read_manifest(self.schema.manifest(phase.id))
        except ArtifactError:
            return None
        root = self.schema.output_dir
        outputs = [root / name for name in manifest.outputs]
        same = (
            manifest.code_sha256 == code_sha256()
            and manifest.config_sha256 == self._settings_sha256(phase)
            and manifest.external_sha256 == external
            and all(path.is_file() for path in outputs)
            and manifest.inputs == inputs
            and manifest.outputs == {relative(path, root): file_digest(path) for path in outputs}
            and set(manifest.outputs) >= {relative(self.schema.path(name), root) for name in phase.outputs}
        )
        return manifest if same else None
