"""The choice of the protocol, and the splits or folds of it."""

import math
from collections.abc import Mapping

from streetvision.calibration.config import AUTO, RiskConfig
from streetvision.calibration.risk_control import fewest_units
from streetvision.contracts.errors import DataError
from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import NO_FOLD, Index, NearDuplicateClusters, Partition, Protocol, Split
from streetvision.data.config import DataConfig
from streetvision.data.splitting.partition import count_units, make_folds, make_partition


def existing_roles(earlier: Partition | None) -> dict[str, Split]:
    """Return image digest -> split. If the earlier protocol has folds, only the images of VAL_TEST keep their split."""
    if earlier is None:
        return {}
    kept = {Split.VAL_TEST} if earlier.folds is not None else set(Split)
    return {row.sha256: role for row, role in zip(earlier.index.rows, earlier.roles, strict=True) if role in kept}


def existing_folds(earlier: Partition | None, n_folds: int) -> dict[str, int]:
    """Return image digest -> fold, or NO_FOLD.

    If the earlier partition has no folds, or too many, only the images of VAL_TEST keep their place.
    """
    if earlier is None:
        return {}
    if earlier.folds is not None and earlier.n_folds <= n_folds:
        return {row.sha256: fold for row, fold in zip(earlier.index.rows, earlier.folds, strict=True)}
    return {row.sha256: NO_FOLD for row in earlier.rows(Split.VAL_TEST)}


def partition_rows(
    index: Index,
    near_duplicates: NearDuplicateClusters | None,
    config: DataConfig,
    risk: RiskConfig,
    *,
    protocol: str,
    roles: Mapping[str, Split],
    folds: Mapping[str, int],
    progress: Progress,
    keep_test: bool = False,
) -> Partition:
    """Return splits or folds, as `protocol` is set or as the data allows.

    Args:
        index: The rows.
        near_duplicates: Clusters that the groups contain.
        config: Fractions, folds and seed.
        risk: The risk that a certificate would bound.
        protocol: split, cross_fit or auto.
        roles: sha256 -> split of rows that keep it under split.
        folds: sha256 -> fold, or NO_FOLD, of rows that keep it under cross_fit.
        progress: Receives the choice of auto.
        keep_test: Previous VAL_TEST; see `make_partition`.

    Raises:
        DataError: A split or a fold would lack a class.
    """

    def four_splits() -> Partition:
        return make_partition(
            index,
            fractions=config.fractions,
            seed=config.seed,
            existing_roles=roles,
            near_duplicates=near_duplicates,
            keep_test=keep_test,
        )

    if protocol == Protocol.SPLIT:
        return four_splits()
    if protocol == AUTO:
        label = {"fnr": 1, "fpr": 0, "error": None}[risk.kind]
        kind = "groups" if label is None else f"groups with {config.class_names[label]}"
        evaluated = [row for row in index.rows if not row.train_only]
        needed, total = fewest_units(risk), count_units(evaluated, label)
        try:
            split = four_splits()
        except DataError:
            found, reason = 0, "the groups are too few for four splits"
        else:
            found = count_units(split.rows(Split.VAL_CALIB), label)
            reason = f"VAL_CALIB would have {found} {kind}, and a certificate needs {needed}"
            if found >= needed:
                return split
        missing = math.ceil(needed / config.fractions[Split.VAL_CALIB]) - total
        more = math.ceil(missing * len(evaluated) / max(total, 1))
        needs = f"; split needs about {more:,} more images" if more > 0 else ""
        progress.auto_setting("data.protocol=cross_fit", f"{reason}{needs}")
    partition = make_folds(
        index,
        fractions=config.fractions,
        folds=config.folds,
        seed=config.seed,
        existing_folds=folds,
        near_duplicates=near_duplicates,
        keep_test=keep_test,
    )
    assert partition.folds is not None
    if any(folds.get(row.sha256, fold) != fold for row, fold in zip(index.rows, partition.folds, strict=True)):
        progress.warn("a class would be missing from an earlier fold: the folds are made again, and VAL_TEST is kept")
    if partition.n_folds < config.folds:
        progress.auto_setting(
            f"data.folds={partition.n_folds}", f"a class would be missing from one of {config.folds} folds"
        )
    return partition
