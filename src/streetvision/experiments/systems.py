"""Compare systems by cross-validation on the same images and folds: each cell runs in a process of its own."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import Field

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.contracts.policies import Artifact, Digest
from streetvision.contracts.split_contracts import Index, Split
from streetvision.eval.cross_validated import cross_validated_difference, cross_validated_intervals
from streetvision.eval.predictions import Predictions
from streetvision.experiments import chains, peers
from streetvision.experiments.ablation_run import spent_seconds
from streetvision.experiments.chains import Chain, check_phases, plan_chains, train_chain
from streetvision.experiments.doc_tables import split_page, write_table
from streetvision.experiments.peers import PEERS, PeerTask
from streetvision.experiments.request import ExperimentRequest
from streetvision.experiments.scene_data import drawn_or_given, no_data_sets, split_scene_settings, with_environment
from streetvision.experiments.systems_page import SystemRow, as_csv, as_json, as_markdown, minutes_plot
from streetvision.experiments.systems_table import System, SystemsData, SystemsTable, folder_name
from streetvision.io.atomic import sha256_file, sha256_json, write_bytes_atomic, write_json_atomic, write_text_atomic
from streetvision.io.lock import run_lock
from streetvision.io.process_pool import failure_reason, run_in_processes, write_output_to
from streetvision.io.validators import validate_json
from streetvision.models.device import job_count
from streetvision.pipeline.artifacts import digest_of_weights
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.data.scan_data import scan_without_splits
from streetvision.pipeline.settings import RunConfig

ONE_PROCESS = "loader.num_workers=0"
"""Default of every cell, because cells share the cores."""


class CellRecord(Artifact):
    """The result of a cell."""

    key: Digest
    """Digest of everything that affects it."""
    probabilities: list[float] = Field(min_length=1)
    """Probabilities of class 1, for the images of the fold in the order of the index."""
    decisions: list[bool]
    seconds: float | None
    """For training and prediction: CPU time, on a GPU wall time. None if it was interrupted."""
    memory: float | None
    """Peak memory in GB; None where the system does not report it."""


@dataclass(frozen=True)
class Cell:
    """One system on one fold of one data set."""

    data: str
    system: System
    chain: Chain
    """The images; for this product, the settings as well."""
    config: RunConfig
    epochs: int
    key: str

    @property
    def record_file(self) -> Path:
        """Written when the cell has finished."""
        return self.chain.folder / f"{self.chain.name}.cell.json"

    def record(self) -> CellRecord | None:
        """The record, if the cell has finished with these settings and data."""
        try:
            record = validate_json(self.record_file, CellRecord)
        except ArtifactError:
            return None
        return record if record.key == self.key else None


def launch_systems(request: ExperimentRequest[SystemsTable], console: Console) -> bool:
    """Run what is missing, then write systems.json, .csv, .md and .png; False when a cell failed.

    Raises:
        ConfigError: The table or a setting is invalid; raised before anything is trained.
    """
    request.refuse("cross_validation.", "set `folds` and `seed` in the table, and `groups` of its data sets")
    request.refuse("run_dir", "set --out: each cell has its own folder below it")
    table = _requested_table(request)
    if request.page is not None:
        split_page(request.page, request.page_mark)  # fails now and not after hours
    request.out.mkdir(parents=True, exist_ok=True)
    with run_lock(request.out / ".lock", option="--out ..."):
        overridden = {override.partition("=")[0] for override in request.overrides}
        indexes: dict[str, Index] = {}
        cells: list[Cell] = []
        for name, data in table.data.items():
            unexpanded = [s for s in (*table.common, *data.settings) if s.partition("=")[0] not in overridden]
            if (own := with_environment(name, unexpanded, console)) is None:
                continue
            expanded = (ONE_PROCESS, *own)
            chosen = drawn_or_given(folder_name(name), expanded, request.overrides, request.out / "data", console)
            settings = (*chosen, *split_scene_settings(request.overrides)[1])
            indexes[name] = _scan(name, settings, request, console)
            for system in table.systems:
                if system.data is not None and name not in system.data:
                    continue
                if system.peer is not None and PEERS[system.peer].version is None:
                    console.warn(f"{system.name!r} is left out: {PEERS[system.peer].package} is not installed")
                    continue
                cells += _plan(name, system, data, settings, indexes[name], request, console)
        if not cells:
            raise no_data_sets()
        failed = execute_cells(cells, request.jobs, console)
        rows = [
            row
            for name, index in indexes.items()
            for row in _rows(name, index, [cell for cell in cells if cell.data == name], table, failed)
        ]
        write_json_atomic(request.out / "systems.json", as_json(rows))
        write_text_atomic(request.out / "systems.csv", as_csv(rows))
        markdown = as_markdown(rows, folds=table.folds)
        write_text_atomic(request.out / "systems.md", markdown)
        picture = minutes_plot(rows)
        write_bytes_atomic(request.out / "systems.png", picture)
        if request.page is not None:
            write_table(request.page, request.page_mark, markdown)
            write_bytes_atomic(request.page.with_name(f"{Path(request.name).stem}.png"), picture)
    for row in rows:
        console.line(row.data, f"{row.system}: {row.summary}")
    console.line("table", str(request.out / "systems.md"))
    return not failed


def execute_cells(cells: Sequence[Cell], jobs: int | None, console: Console) -> dict[Path, str]:
    """Execute the cells that have no record yet; returns record file -> reason for each that failed."""
    missing = [cell for cell in cells if cell.record() is None]
    jobs = job_count(jobs)
    done = len(cells) - len(missing)
    console.line("cells", f"{len(cells)} cells, {done} of them done; {min(jobs, max(1, len(missing)))} at a time")
    failed = {}
    results = run_in_processes(run_cell, missing, jobs, preload=chains.PRELOADED)
    for cell, code in console.track(results, total=len(missing), label="cells"):
        if code != 0 or cell.record() is None:
            failed[cell.record_file] = failure_reason(cell.chain.log, code)
            console.warn(f"{cell.system.name} on {cell.data}, fold {cell.chain.fold}: {failed[cell.record_file]}")
    return failed


def run_cell(cell: Cell, threads: int) -> None:
    """Train, predict the fold and write the record; call it in a process of its own, whose output becomes the log."""
    scratch = cell.chain.run_folder
    if cell.system.peer is not None:
        shutil.rmtree(scratch, ignore_errors=True)  # features of an interrupted cell, whose time would not count
    resumed = scratch.exists()
    started = spent_seconds()
    if cell.system.peer is None:
        train_chain(cell.chain, threads)
        result = cell.chain.result()
        assert result is not None, "a chain that fails ends the process"
        probabilities, decisions = result.probabilities, result.decisions
    else:
        write_output_to(cell.chain.log)
        probabilities = _predict_with_peer(cell, threads)
        decisions = [p > 0.5 for p in probabilities]
    record = CellRecord(
        key=cell.key,
        probabilities=probabilities,
        decisions=decisions,
        seconds=None if resumed else spent_seconds() - started,
        memory=_peak_memory(),
    )
    write_json_atomic(cell.record_file, record.model_dump(mode="json"))
    shutil.rmtree(scratch, ignore_errors=True)


def _predict_with_peer(cell: Cell, threads: int) -> list[float]:
    import torch

    torch.set_num_threads(threads)
    partition = cell.chain.partition
    task = PeerTask(
        train=tuple(
            row for row, role in zip(partition.index.rows, partition.roles, strict=True) if role is not Split.VAL_TEST
        ),
        test=partition.rows(Split.VAL_TEST),
        root=partition.index.root,
        config=cell.config,
        epochs=cell.epochs,
        folder=cell.chain.run_folder,
    )
    task.folder.mkdir(parents=True, exist_ok=True)
    assert cell.system.peer is not None
    return [float(p) for p in PEERS[cell.system.peer].predict(task)]


def _peak_memory() -> float | None:
    """Peak memory of this process and of its largest child, in GB."""
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return None
    unit = 1e9 if sys.platform == "darwin" else 1e6
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / unit


def _requested_table(request: ExperimentRequest[SystemsTable]) -> SystemsTable:
    """The table, with the data of the request instead of its own if there is a data.root."""
    table, root = request.table, request.data_root
    if root is None:
        return table
    systems = tuple(system.model_copy(update={"data": None}) for system in table.systems)
    return table.model_copy(update={"data": {Path(root).resolve().name: SystemsData(settings=())}, "systems": systems})


def _scan(name: str, settings: Sequence[str], request: ExperimentRequest[SystemsTable], console: Console) -> Index:
    """The images of a data set, with the groups that near-duplicates join."""
    root = request.out / "scans" / folder_name(name)
    config = compose_config([*settings, f"run_dir={root}"])
    return scan_without_splits(config, ArtifactSchema(root), console).index


def _plan(
    name: str,
    system: System,
    data: SystemsData,
    settings: Sequence[str],
    index: Index,
    request: ExperimentRequest[SystemsTable],
    console: Console,
) -> Iterator[Cell]:
    """The cells of one system on one data set, one for each outer fold."""
    folds = [
        f"cross_validation.folds={request.table.folds}",
        "cross_validation.repeats=1",
        f"cross_validation.learning_curve=[{data.groups if data.groups < 1 else ''}]",
        f"cross_validation.seed={request.table.seed}",
    ]
    overridden = {override.partition("=")[0] for override in request.overrides}
    own = [*settings, *(s for s in system.settings if s.partition("=")[0] not in overridden)]
    try:
        config = compose_config([*own, *folds])
        if system.peer is None:
            check_phases(config)
    except ConfigError as error:
        raise ConfigError(f"system {system.name!r}: {error.message}", error.hint) from error
    folder = request.out / "cells" / folder_name(name) / folder_name(system.name)
    for chain in plan_chains(index, config, folder, console):
        if chain.share != data.groups:
            continue
        key = chain.key
        if system.peer is not None:
            partition = chain.partition
            roles = zip(partition.index.rows, partition.roles, strict=True)
            rows = [(row.sha256, row.label, role is Split.VAL_TEST) for row, role in roles]
            key = sha256_json(
                [
                    sha256_file(Path(peers.__file__)),
                    system.peer,
                    PEERS[system.peer].version,
                    config.model.model_dump(mode="json"),
                    digest_of_weights(config.model),
                    config.pipeline.seed,
                    data.epochs,
                    rows,
                ]
            )
        yield Cell(name, system, chain, config, data.epochs, key)


def _rows(
    name: str, index: Index, cells: Sequence[Cell], table: SystemsTable, failed: Mapping[Path, str]
) -> Iterator[SystemRow]:
    """A row for each system that was run on a data set."""
    position = {row.path: number for number, row in enumerate(index.rows)}
    labels, groups = [row.label for row in index.rows], [row.group for row in index.rows]
    first: Predictions | None = None
    for system in table.systems:
        own = [cell for cell in cells if cell.system == system]
        records = [(cell, record) for cell in own if (record := cell.record()) is not None]
        if not own:
            continue
        row = SystemRow(name, system.name, len(labels), sum(labels))
        if len(records) < len(own):
            reason = next(
                (failed[cell.record_file] for cell in own if cell.record_file in failed), "a cell has no record"
            )
            yield replace(row, missing=reason)
            continue
        p, decisions = np.full(len(labels), np.nan), np.zeros(len(labels), dtype=bool)
        for cell, record in records:
            rows = [position[row.path] for row in cell.chain.partition.rows(Split.VAL_TEST)]
            p[rows], decisions[rows] = record.probabilities, record.decisions
        if np.isnan(p).any():
            yield replace(row, missing="a fold has too few groups to train on")
            continue
        predictions = Predictions(labels, p, groups, decisions=decisions)
        seconds = [record.seconds for _, record in records if record.seconds is not None]
        memory = [record.memory for _, record in records if record.memory is not None]
        yield replace(
            row,
            metrics=cross_validated_intervals([predictions], folds=table.folds),
            difference=None
            if first is None
            else cross_validated_difference(predictions, first, folds=table.folds)["mcc"],
            minutes=float(np.mean(seconds)) / 60 if seconds else None,
            memory=max(memory, default=None),
        )
        if system == table.systems[0]:
            first = predictions
