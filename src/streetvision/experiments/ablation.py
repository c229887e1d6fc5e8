"""Run an ablation table: plan the runs, execute the missing ones in processes, compare, write the table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import product
from pathlib import Path

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.experiments.ablation_page import as_csv, as_markdown, left_out, summary_lines
from streetvision.experiments.ablation_run import AblationRun, execute_run
from streetvision.experiments.ablation_table import AblationTable, Arm, Pair
from streetvision.experiments.comparison import ArmResult, ComparisonSettings, PairResults, compare
from streetvision.experiments.doc_tables import split_page, write_table
from streetvision.experiments.request import ExperimentRequest
from streetvision.experiments.scene_data import (
    NAME_DIGITS,
    drawn_or_given,
    no_data_sets,
    split_scene_settings,
    with_environment,
)
from streetvision.io.atomic import sha256_json, write_json_atomic, write_text_atomic
from streetvision.io.lock import run_lock
from streetvision.io.predictions import read_predictions
from streetvision.io.process_pool import failure_reason, run_in_processes
from streetvision.models.device import job_count
from streetvision.pipeline.artifacts import digest_of_weights
from streetvision.pipeline.config import compose_config, settings_sha256
from streetvision.pipeline.console import Console
from streetvision.pipeline.phases import PRELOADED
from streetvision.pipeline.settings import RunConfig
from streetvision.pipeline.test_access_log import count_test_accesses

ONE_PROCESS = ("loader.num_workers=0",)
"""Default of every arm, because arms share the cores."""
NO_RECORD = "it left no record of this code and these settings; was the code changed while it ran?"

ArmKey = tuple[str, str, int, str]
"""Pair, data set, seed, and baseline or variant."""
Plan = dict[ArmKey, AblationRun]


def launch_ablation(request: ExperimentRequest[AblationTable], console: Console) -> bool:
    """Run what is missing, then write ablation.json, .csv and .md; False when a split of a pair is left out.

    Raises ConfigError before anything runs when the table or a setting is invalid.
    """
    request.refuse("pipeline.seed", "set --seeds N, or `seeds` in the table")
    table = requested_table(request)
    if request.page is not None:
        split_page(request.page, request.page_mark)  # fails now and not after hours of runs
    request.out.mkdir(parents=True, exist_ok=True)
    with run_lock(request.out / ".lock", option="--out ..."):
        data = {}
        for name in dict.fromkeys(name for _, name in table.comparisons):
            if (own := with_environment(name, table.data[name], console)) is not None:
                data[name] = drawn_or_given(name, own, request.overrides, request.out / "data", console)
        if not data:
            raise no_data_sets()
        table = table.model_copy(update={"data": data})
        plan = plan_runs(table, data, request)
        failed = execute_runs(list(dict.fromkeys(plan.values())), request.jobs, console)
        results = [_pair_results(pair, name, plan, failed) for pair, name in table.comparisons]
        settings = ComparisonSettings(comparisons=len(results))
        rows = [row for pair_results in results for row in compare(pair_results, settings)]
        accesses = _test_accesses(plan)
        arms = [
            {"pair": pair, "data": name, "seed": seed, "arm": arm, "run": str(run.root), "settings": run.overrides}
            for (pair, name, seed, arm), run in plan.items()
        ]
        content = {
            "table": request.name,
            "level_of_each": settings.level_of_each,
            "test_accesses": accesses,
            "arms": arms,
            "rows": [asdict(row) for row in rows],
        }
        write_json_atomic(request.out / "ablation.json", content)
        write_text_atomic(request.out / "ablation.csv", as_csv(rows))
        markdown = as_markdown(rows, settings, accesses)
        write_text_atomic(request.out / "ablation.md", markdown)
        if request.page is not None:
            write_table(request.page, request.page_mark, markdown)
    for pair, text in summary_lines(rows):
        console.line(pair, text)
    reasons = left_out(rows)
    for reason in reasons:
        console.warn(f"left out: {reason}")
    console.line("table", str(request.out / "ablation.md"))
    return not reasons


def requested_table(request: ExperimentRequest[AblationTable]) -> AblationTable:
    """The table, with the data of the request instead of its own if there is a data.root."""
    table = request.table
    if request.data_root is None:
        return table
    pairs = tuple(pair.model_copy(update={"data": None}) for pair in table.pairs)
    return table.model_copy(update={"data": {Path(request.data_root).resolve().name: ()}, "pairs": pairs})


def plan_runs(
    table: AblationTable, data: Mapping[str, tuple[str, ...]], request: ExperimentRequest[AblationTable]
) -> Plan:
    """The run of each arm; arms whose composed settings are equal share one run.

    Raises:
        ConfigError: A setting is invalid, or the arms of a pair are the same or have different splits.
    """
    overrides = tuple(split_scene_settings(request.overrides)[1])
    plan: Plan = {}
    by_root: dict[Path, AblationRun] = {}
    weights = cache(digest_of_weights)
    for (pair, name), seed in product(table.comparisons, table.seeds):
        splits = []
        for side, arm in (("baseline", pair.baseline), ("variant", pair.variant)):
            settings = (
                *ONE_PROCESS,
                *table.common,
                *data[name],
                *pair.shared,
                *arm.settings,
                *overrides,
                f"pipeline.seed={seed}",
            )
            try:
                config = _composed(settings)
            except ConfigError as error:
                raise ConfigError(f"pair {pair.name!r}: {error.message}", error.hint) from error
            splits.append((config.data.seed, config.data.fractions))
            digest = sha256_json([settings_sha256(config), weights(config.model)])
            root = request.out / "runs" / name / f"seed_{seed}" / digest[:NAME_DIGITS]
            plan[pair.name, name, seed, side] = by_root.setdefault(root, AblationRun(settings, digest, root))
        if splits[0] != splits[1]:
            raise ConfigError(
                f"pair {pair.name!r}: baseline and variant differ in data.seed or data.fractions, so in their VAL_TEST",
                "move these settings from the arm to the data set",
            )
        baseline, variant = (plan[pair.name, name, seed, side] for side in ("baseline", "variant"))
        if (baseline, pair.baseline.policy) == (variant, pair.variant.policy):
            raise ConfigError(
                f"pair {pair.name!r}: baseline and variant have the same settings and policy on {name!r}",
                "leave the settings that they differ in out of the command, or change the settings of one",
            )
    return plan


@cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    config = compose_config(overrides)
    if config.run_dir is not None:
        raise ConfigError("run_dir cannot be set in an ablation", "remove it: each arm has its own folder below --out")
    return config


def execute_runs(runs: Sequence[AblationRun], jobs: int | None, console: Console) -> dict[AblationRun, str]:
    """Execute the runs that have no record yet; returns the reason for each that failed."""
    missing = [run for run in runs if run.record() is None]
    jobs = job_count(jobs)
    done = len(runs) - len(missing)
    console.line("runs", f"{len(runs)} runs, {done} of them done; {min(jobs, max(1, len(missing)))} at a time")
    failed: dict[AblationRun, str] = {}
    finished = run_in_processes(execute_run, missing, jobs, preload=PRELOADED)
    for number, (run, exit_code) in enumerate(finished, start=1):
        if exit_code or run.record() is None:
            failed[run] = failure_reason(run.log, exit_code) if exit_code else NO_RECORD
            console.warn(f"a run failed: {failed[run]} ({run.log})")
        else:
            console.line("", f"{number} of {len(missing)}: {run.root}")
    return failed


def _pair_results(pair: Pair, data: str, plan: Plan, failed: Mapping[AblationRun, str]) -> PairResults:
    splits, missing = {}, []
    for seed in [key[2] for key in plan if key[:2] == (pair.name, data) and key[3] == "baseline"]:
        baseline, variant = (plan[pair.name, data, seed, side] for side in ("baseline", "variant"))
        reasons = [
            f"seed {seed}, {side}: {failed[run]}"
            for side, run in (("baseline", baseline), ("variant", variant))
            if run in failed
        ]
        missing += reasons
        if not reasons:
            try:
                splits[seed] = (_arm_result(baseline, pair.baseline), _arm_result(variant, pair.variant))
            except ArtifactError as error:
                missing.append(f"seed {seed}: {'; '.join(str(error).splitlines())}")
    return PairResults(data, pair, splits, tuple(missing))


def _arm_result(run: AblationRun, arm: Arm) -> ArmResult:
    record = run.record()
    assert record is not None, "an arm that did not fail has a record"
    # Of several policies with one name, the first is the one on single views.
    for predictions in read_predictions(ArtifactSchema(run.root).predictions_csv):
        if predictions.shipped if arm.policy == "shipped" else predictions.policy == arm.policy:
            return ArmResult(predictions, record.images_outside_val_test, record.cost)
    raise ArtifactError(f"{str(run.root)!r} has no predictions of policy {arm.policy!r}", "run phase2 in this arm")


def _test_accesses(plan: Plan) -> dict[str, int]:
    """Data set and seed -> accesses to that VAL_TEST over all arms, by the access logs of their runs."""
    accesses: dict[str, int] = {}
    for (name, seed), run in dict.fromkeys(((key[1], key[2]), run) for key, run in plan.items()):
        place = f"{name}, seed {seed}"
        count = count_test_accesses(ArtifactSchema(run.root).test_access_log_json)
        accesses[place] = accesses.get(place, 0) + count
    return accesses
