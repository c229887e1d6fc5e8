"""The chains of a cross-validation: the whole training on the images outside an outer fold, predicting that fold."""

import csv
import io
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import Field

from streetvision.bundle.predictor import load_bundle
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError, DataError, StreetVisionError
from streetvision.contracts.policies import Artifact, Digest
from streetvision.contracts.settings import list_setting
from streetvision.contracts.split_contracts import NO_FOLD, Index, Partition, Protocol, Row, Split
from streetvision.data.config import CocoConfig
from streetvision.data.records import group_cell
from streetvision.data.splitting.partition import assign_folds, unit_name
from streetvision.data.splitting.splits_json import partition_from_json, partition_to_json
from streetvision.io.atomic import read_json, sha256_json, write_json_atomic, write_text_atomic
from streetvision.io.manifests import code_sha256
from streetvision.io.process_pool import write_output_to
from streetvision.io.validators import validate_json
from streetvision.pipeline.artifacts import digest_of_weights
from streetvision.pipeline.config import compose_config, format_overrides, settings_sha256
from streetvision.pipeline.console import Console
from streetvision.pipeline.data.partition_data import partition_rows
from streetvision.pipeline.run import launch_training
from streetvision.pipeline.settings import CrossValidationConfig, RunConfig

OWN_SETTINGS = (
    "data.root",
    "data.group",
    "data.source",
    "data.coco",
    "data.hf_split",
    "data.protocol",
    "run_dir",
    "scenes.",
    "cross_validation.",
)
"""Prefixes of the settings that a chain in its own process does not get."""
USER_ERROR = 2
MAX_SOURCE_FOLDS = 20
"""More sources than this are divided into so many outer folds."""
PRELOADED = ("streetvision.pipeline.steps.train_baseline",)
"""Modules that a process of a chain needs."""


class ChainResult(Artifact):
    """The predictions of one chain for its outer fold."""

    key: Digest
    """Digest of code, settings, weights and splits."""
    protocol: str
    threshold: float
    probabilities: list[float] = Field(min_length=1)
    """Probabilities of class 1, in the order of the index."""
    decisions: list[bool]


@dataclass(frozen=True)
class Chain:
    """One chain of a cross-validation."""

    repeat: int
    fold: int
    share: float
    """Share of the groups outside the outer fold that it may use."""
    partition: Partition
    """Its images; VAL_TEST is the outer fold."""
    key: str
    folder: Path
    overrides: tuple[str, ...]
    """Settings of a chain in its own process, as KEY=VALUE."""
    by_source: bool = False
    """Whether the outer fold consists of whole sources."""

    @property
    def name(self) -> str:
        """Name of its files."""
        if self.by_source:
            return f"source_fold{self.fold}"
        return f"repeat{self.repeat}_fold{self.fold}_{100 * self.share:g}"

    @property
    def run_folder(self) -> Path:
        """Run of a chain in its own process. Other settings or data have another folder, whose splits do not differ."""
        return self.folder / f"{self.name}_{self.key[:12]}"

    @property
    def record(self) -> Path:
        """Written when the chain has finished. Other settings or data have another file."""
        return self.folder / f"{self.name}_{self.key[:12]}.json"

    @property
    def log(self) -> Path:
        """Output of its process."""
        return self.folder / f"{self.name}.log"

    def result(self) -> ChainResult | None:
        """The result, if the chain has finished with this code, settings and data."""
        try:
            result = validate_json(self.record, ChainResult)
        except ArtifactError:
            return None
        n_test = len(self.partition.rows(Split.VAL_TEST))
        return result if result.key == self.key and len(result.probabilities) == n_test else None

    def save(self, probabilities: Sequence[float], decisions: Sequence[bool], threshold: float) -> None:
        """Write the result."""
        result = ChainResult(
            key=self.key,
            protocol=self.partition.protocol.value,
            threshold=threshold,
            probabilities=list(probabilities),
            decisions=list(decisions),
        )
        write_json_atomic(self.record, result.model_dump(mode="json"))


def check_phases(config: RunConfig) -> None:
    """Raise ConfigError if pipeline.phases lacks a phase that a chain needs: it predicts with its bundle."""
    needed = ("phase1", "phase5" if config.phase6.policy == "scrc" else "phase2", "phase6")
    if missing := [phase for phase in needed if phase not in config.pipeline.phases]:
        raise ConfigError(
            f"a chain predicts with its bundle, and pipeline.phases has no {' and no '.join(missing)}",
            f"set {list_setting('pipeline.phases', [*config.pipeline.phases, *missing])}, or leave pipeline.phases out",
        )


def plan_chains(index: Index, config: RunConfig, folder: Path, console: Console) -> Iterator[Chain]:
    """The chains of all repeats and outer folds; those of the learning curve in the first repeat only."""
    settings = config.cross_validation
    given = {key: value for key, value in config.overrides.items() if not key.startswith(OWN_SETTINGS)}
    kept = tuple(format_overrides(given))
    # The fingerprint of the index stands for the place of the images, which may change.
    data = config.data.model_copy(update={"root": None, "coco": CocoConfig()})
    settings_digest = settings_sha256(
        config.model_copy(update={"cross_validation": CrossValidationConfig(), "data": data})
    )
    base = [code_sha256(), settings_digest, digest_of_weights(config.model)]

    def chain(train: Sequence[Row], test: Sequence[Row], repeat: int, fold: int, share: float = 1.0) -> Chain:
        paths = {row.path for row in (*train, *test)}
        rows = tuple(row for row in index.rows if row.path in paths)
        partition = _partition(replace(index, rows=rows), test, config, console)
        key = sha256_json([*base, index.fingerprint, partition.split_sha256])
        return Chain(repeat, fold, share, partition, key, folder, kept)

    for repeat in range(settings.repeats):
        outer = assign_folds(index.rows, settings.folds, seed=settings.seed + repeat)
        for fold in range(settings.folds):
            test = [row for row, of_row in zip(index.rows, outer, strict=True) if of_row == fold]
            train = [row for row, of_row in zip(index.rows, outer, strict=True) if of_row != fold]
            shares = (1.0, *settings.learning_curve) if repeat == 0 else (1.0,)
            for share in shares:
                subset = _share_of_groups(train, share, seed=settings.seed)
                try:
                    yield chain(subset, test, repeat, fold, share)
                except DataError as error:
                    if share == 1:
                        raise
                    console.warn(f"the learning curve has no point at {share:.0%}: {error.message}")
    if settings.leave_out is not None:
        for fold, (train, test) in enumerate(without_sources(index.rows, seed=settings.seed, console=console)):
            try:
                yield replace(chain(train, test, 0, fold), by_source=True)
            except DataError as error:
                sources = ", ".join(sorted({row.source or "" for row in test}))
                raise DataError(f"without the images of source {sources}: {error.message}", error.hint) from error


def without_sources(rows: Sequence[Row], *, seed: int, console: Console) -> Iterator[tuple[list[Row], list[Row]]]:
    """Yield the images to train on and those to predict, for each source, or for several if there are many.

    Raises:
        DataError: There are fewer than two sources.
    """
    sources = sorted({row.source for row in rows if row.source is not None})
    if len(sources) < 2:
        raise DataError(
            f"cross_validation.leave_out=source needs images of two sources or more (found: {len(sources)})",
            "name them with data.source_column or data.source_pattern",
        )
    if unnamed := sum(row.source is None for row in rows):
        console.warn(f"{unnamed:,} images have no source: they are trained on and not predicted as an unseen source")
    named = [row for row in rows if row.source is not None]
    folds = [sources.index(str(row.source)) for row in named]
    if len(sources) > MAX_SOURCE_FOLDS:
        folds = assign_folds([replace(row, group=row.source) for row in named], MAX_SOURCE_FOLDS, seed=seed)
    shared = 0
    for fold in range(max(folds) + 1):
        test = [row for row, of_row in zip(named, folds, strict=True) if of_row == fold]
        paths, units = {row.path for row in test}, {unit_name(row) for row in test}
        others = [row for row in rows if row.path not in paths]
        train = [row for row in others if unit_name(row) not in units]
        shared += len(others) - len(train)
        yield train, test
    if shared:
        console.warn(f"{shared:,} images of other sources were not trained on: their groups are in the source left out")


def _partition(index: Index, test: Sequence[Row], config: RunConfig, console: Console) -> Partition:
    """The splits or folds of the rows outside `test`, which is VAL_TEST."""
    return partition_rows(
        index,
        None,  # the groups contain the near-duplicates
        config.data,
        config.phase5.risk,
        protocol=config.data.protocol,
        roles={row.sha256: Split.VAL_TEST for row in test},
        folds={row.sha256: NO_FOLD for row in test},
        progress=console,
        keep_test=True,
    )


def _share_of_groups(rows: Sequence[Row], share: float, *, seed: int) -> list[Row]:
    """A part of the groups of each class; a smaller share is a part of a larger one."""
    kept: set[str] = set()
    for label in (0, 1):
        names = sorted({unit_name(row) for row in rows if row.label == label})
        order = np.random.default_rng(seed).permutation(len(names))
        kept |= {names[position] for position in order[: math.ceil(share * len(names))]}
    return [row for row in rows if unit_name(row) in kept] if share < 1 else list(rows)


def train_chain(chain: Chain, threads: int) -> None:
    """Run the phases of a chain, predict its outer fold and write the result; call it in a process of its own.

    Ends the process with exit code 2 and one line for a user error.
    """
    write_output_to(chain.log)
    import torch

    torch.set_num_threads(threads)
    root, source, names = chain.run_folder, chain.partition.index.root, chain.partition.index.class_names
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "group"])
    writer.writerows(
        # The name, because 0 and 1 may be names of the other class.
        [(source / row.path).absolute(), names[row.label], group_cell(row.group)]
        for row in chain.partition.index.rows
    )
    ignored = "data.folds=" if chain.partition.protocol is Protocol.SPLIT else None
    settings = [
        *(setting for setting in chain.overrides if ignored is None or not setting.startswith(ignored)),
        # The index has the group of each image.
        f"data.root={root / 'index.csv'}",
        "data.grouping.by=[column]",
        f"data.protocol={chain.partition.protocol.value}",
        f"run_dir={root}",
    ]
    schema = ArtifactSchema(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_text_atomic(root / "index.csv", text.getvalue())
        config = compose_config(settings)
        if not schema.splits_json.is_file():
            absolute = [replace(row, path=str((source / row.path).absolute())) for row in chain.partition.index.rows]
            index = replace(chain.partition.index, root=root, rows=tuple(absolute))
            write_json_atomic(schema.splits_json, partition_to_json(replace(chain.partition, index=index)))
        launch_training(config, console=Console())
        partition = partition_from_json(read_json(schema.splits_json), schema.splits_json)
        predictor = load_bundle(schema.export_dir, limits=config.loader.limits)
        predictions = predictor.predict([partition.index.root / row.path for row in partition.rows(Split.VAL_TEST)])
    except StreetVisionError as error:
        print(f"error: {error.message}", flush=True)  # noqa: T201 (the log)
        sys.exit(USER_ERROR)
    chain.save([p.probability for p in predictions], [p.decision == 1 for p in predictions], predictor.threshold)
