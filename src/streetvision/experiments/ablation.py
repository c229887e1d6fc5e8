"""From a table of pairs to its runs, in as many processes as there are cores, and from those to their differences."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.experiments.ablation_page import as_csv, as_markdown, summary_lines
from streetvision.experiments.ablation_run import PRELOADED, AblationRun, execute_run
from streetvision.experiments.ablation_table import AblationTable, Arm, Pair, read_table
from streetvision.experiments.comparison import Comparison, Met, Row, Shown, compare
from streetvision.experiments.doc_tables import around_place, put_into_page
from streetvision.io.atomic import sha256_json, write_json_atomic, write_text_atomic
from streetvision.io.lock import run_lock
from streetvision.io.predictions import Answers, read_predictions
from streetvision.io.process_pool import failure_reason, run_in_processes
from streetvision.models.device import default_jobs
from streetvision.pipeline.config import compose_config, settings_sha256
from streetvision.pipeline.console import Console
from streetvision.pipeline.test_access_log import read_test_accesses
from streetvision.synthetic.scenes import write_scenes

ONE_PROCESS = ("loader.num_workers=0",)
"""Beneath the settings of every arm: it shares the cores with others."""
NO_RECORD = "it left no record of this code and these settings; was the code changed while it ran?"
NAME_DIGITS = 12
"""Of a settings digest in the name of a run folder."""

Side = tuple[str, str, int, str]
"""Pair, data set, seed, a or b."""


@dataclass(frozen=True)
class Request:
    """What a person asked for."""

    table: str
    out: Path
    """Folder of the runs and of what comes of them."""
    overrides: tuple[str, ...] = ()
    """Of every arm, above its own; a data.root= among them takes the place of the table's data sets."""
    pairs: tuple[str, ...] = ()
    """Empty: all."""
    seeds: tuple[int, ...] = ()
    """Empty: the table's."""
    jobs: int | None = None
    """Processes at a time; None: one a core, on a GPU one."""
    page: Path | None = None
    """A Markdown page whose copy of the table is written anew."""


def launch_ablation(request: Request, console: Console) -> bool:
    """Run what is not there yet, then write ablation.json, .csv and .md; False where an arm failed.

    Raises ConfigError before anything runs for a table or for settings that cannot be.
    """
    table = _asked(request)
    if request.page is not None:
        around_place(request.page, _mark(request))  # hours before it is written to
    request.out.mkdir(parents=True, exist_ok=True)
    with run_lock(request.out / ".lock"):
        wanted = dict.fromkeys(name for _, name in table.comparisons)
        data = {name: _settle_data(name, table, request, console) for name in wanted}
        plan = _plan(table, data, request)
        failed = _run_all(list(dict.fromkeys(plan.values())), request.jobs, console)
        rows, how = _compare(table, plan, failed)
        looks = _looks(plan)
        _write(rows, how, looks, plan, request)
    for pair, told in summary_lines(rows):
        console.line(pair, told)
    console.line("table", str(request.out / "ablation.md"))
    return not failed


def _asked(request: Request) -> AblationTable:
    table = read_table(request.table)
    table = table.only(request.pairs) if request.pairs else table
    if request.seeds:
        table = table.model_copy(update={"seeds": request.seeds})
    root = dict(override.partition("=")[::2] for override in request.overrides).get("data.root")
    if root is None:
        return table
    pairs = tuple(pair.model_copy(update={"data": None}) for pair in table.pairs)
    return table.model_copy(update={"data": {Path(root).resolve().name: ()}, "pairs": pairs})


def _settle_data(name: str, table: AblationTable, request: Request, console: Console) -> tuple[str, ...]:
    """The settings that lead every arm to a data set; scenes are drawn once for all."""
    given = [*table.data[name], *request.overrides]
    drawing, rest = _parted(given)
    if any(setting.startswith("data.root=") for setting in rest):
        if drawing:
            raise ConfigError(f"data set {name!r} has a data.root, and {drawing[0]} draws scenes", "leave out one")
        return tuple(table.data[name])
    scenes = compose_config(drawing).scenes
    folder = request.out / "data" / f"{name}_{sha256_json(scenes.model_dump(mode='json'))[:NAME_DIGITS]}"
    write_scenes(folder, scenes, console)
    return (*_parted(table.data[name])[1], f"data.root={folder.absolute()}")


def _parted(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings of scenes, and the others."""
    drawing = [setting for setting in settings if setting.startswith("scenes.")]
    return drawing, [setting for setting in settings if setting not in drawing]


def _plan(table: AblationTable, data: Mapping[str, tuple[str, ...]], request: Request) -> dict[Side, AblationRun]:
    """The run of each side; what is the same in settings, however it was written, is the same run."""
    own = tuple(_parted(request.overrides)[1])
    plan: dict[Side, AblationRun] = {}
    by_root: dict[Path, AblationRun] = {}
    for (pair, name), seed in product(table.comparisons, table.seeds):
        for side, arm in (("a", pair.a), ("b", pair.b)):
            overrides = (
                *ONE_PROCESS,
                *table.common,
                *data[name],
                *pair.both,
                *arm.settings,
                *own,
                f"pipeline.seed={seed}",
            )
            run = _arm_run(overrides, request.out / "runs" / name / f"seed_{seed}", pair)
            plan[pair.name, name, seed, side] = by_root.setdefault(run.root, run)
    return plan


def _arm_run(overrides: tuple[str, ...], folder: Path, pair: Pair) -> AblationRun:
    try:
        digest = _digest(overrides)
    except ConfigError as error:
        raise ConfigError(f"pair {pair.name!r}: {error.message}", error.hint) from error
    return AblationRun(overrides, digest, folder / digest[:NAME_DIGITS])


@cache
def _digest(overrides: tuple[str, ...]) -> str:
    config = compose_config(overrides)
    if config.run_dir is not None:
        raise ConfigError("an arm names a run_dir", "every arm has a folder of its own below --out")
    return settings_sha256(config)


def _run_all(arms: Sequence[AblationRun], jobs: int | None, console: Console) -> dict[AblationRun, str]:
    """Run what has no record yet; returns why arms failed."""
    waiting = [arm for arm in arms if arm.done() is None]
    at_once = jobs or default_jobs()
    told = f"{len(arms)} runs, {len(arms) - len(waiting)} of them there already"
    console.line("arms", f"{told}; {min(at_once, max(1, len(waiting)))} at a time")
    failed: dict[AblationRun, str] = {}
    for done, (arm, exit_code) in enumerate(
        run_in_processes(execute_run, waiting, at_once, preload=PRELOADED), start=1
    ):
        if exit_code or arm.done() is None:
            failed[arm] = failure_reason(arm.log, exit_code) if exit_code else NO_RECORD
            console.warn(f"a run failed: {failed[arm]} ({arm.log})")
        else:
            console.line("", f"{done} of {len(waiting)}: {arm.root}")
    return failed


def _compare(
    table: AblationTable, plan: Mapping[Side, AblationRun], failed: Mapping[AblationRun, str]
) -> tuple[list[Row], Comparison]:
    met = [_met(pair, name, plan, failed) for pair, name in table.comparisons]
    how = Comparison(comparisons=len(met))
    return [row for one in met for row in compare(one, how)], how


def _met(pair: Pair, data: str, plan: Mapping[Side, AblationRun], failed: Mapping[AblationRun, str]) -> Met:
    splits, missing = {}, []
    for seed in [key[2] for key in plan if key[:2] == (pair.name, data) and key[3] == "a"]:
        runs = {side: plan[pair.name, data, seed, side] for side in ("a", "b")}
        lost = [f"seed {seed}, arm {side}: {failed[run]}" for side, run in runs.items() if run in failed]
        missing += lost
        if not lost:
            splits[seed] = (_shown(runs["a"], pair.a), _shown(runs["b"], pair.b))
    return Met(data, pair, splits, tuple(missing))


def _shown(run: AblationRun, arm: Arm) -> Shown:
    record = run.done()
    assert record is not None, "an arm that did not fail has a record"
    return Shown(
        _judged(read_predictions(ArtifactSchema(run.root).predictions_csv), arm, run), record.rest, record.cost
    )


def _judged(policies: Sequence[Answers], arm: Arm, run: AblationRun) -> Answers:
    """Of an evaluation's policies the one that the arm is judged by: the first of its name is that on single views."""
    for answers in policies:
        if answers.shipped if arm.judge == "shipped" else answers.policy == arm.judge:
            return answers
    raise ArtifactError(f"{str(run.root)!r} has no answers of policy {arm.judge!r}", "let phase2 run in this arm")


def _looks(plan: Mapping[Side, AblationRun]) -> dict[str, int]:
    """Data set and seed -> looks at that VAL_TEST over all arms, by the ledgers of their runs."""
    looks: dict[str, int] = {}
    for (name, seed), run in dict.fromkeys(((key[1], key[2]), run) for key, run in plan.items()):
        place = f"{name}, seed {seed}"
        looks[place] = looks.get(place, 0) + read_test_accesses(ArtifactSchema(run.root).test_access_log_json)
    return looks


def _write(
    rows: list[Row], how: Comparison, looks: dict[str, int], plan: Mapping[Side, AblationRun], request: Request
) -> None:
    arms = [
        {"pair": pair, "data": data, "seed": seed, "side": side, "run": str(run.root), "settings": list(run.overrides)}
        for (pair, data, seed, side), run in plan.items()
    ]
    content = {"table": request.table, "level_of_each": how.each, "looks_at_val_test": looks, "arms": arms}
    write_json_atomic(request.out / "ablation.json", {**content, "rows": [asdict(row) for row in rows]})
    write_text_atomic(request.out / "ablation.csv", as_csv(rows))
    table = as_markdown(rows, how, looks)
    write_text_atomic(request.out / "ablation.md", table)
    if request.page is not None:
        put_into_page(request.page, _mark(request), table)


def _mark(request: Request) -> str:
    return f"ablate {Path(request.table).stem}"
