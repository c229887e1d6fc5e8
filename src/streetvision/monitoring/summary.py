"""The status of a monitored stream as lines for the terminal."""

from streetvision.bundle.monitor_status import MonitorStatus
from streetvision.contracts.policies import EstimateWithInterval
from streetvision.contracts.progress import Progress


def print_status(status: MonitorStatus, console: Progress) -> None:
    """Print one line for each question."""
    console.line(
        "predictions",
        f"{status.images:,}, of which {status.failures:,} failed; {status.units:,} count, one of each group",
    )
    if status.without_group:
        console.warn(
            f"{status.without_group:,} images have no group: neighboring frames of a video would raise false alarms, "
            "which cannot be detected; set --group-pattern"
        )
    for name, test in status.tests.items():
        compared = "" if test.reference else "; compared with its own beginning, as the reference is out of fold"
        alarm = "no alarm" if test.alarm_at is None else f"ALARM at image {test.alarm_at:,} of those that count"
        console.line(name, f"{alarm}; log10 of the martingale {test.log10_martingale:.2f}{compared}")
    if status.recent_prevalence is not None and status.suited_threshold is not None:
        console.line(
            "prevalence",
            f"{_interval(status.recent_prevalence)} recently, if only the share of the classes changed; threshold for "
            f"it: {status.suited_threshold:.3f} (not applied)",
        )
    risk = status.risk
    if risk.labels:
        limit = "" if risk.limit is None else f"; certified {risk.limit:g}"
        console.line(
            "risk",
            f"{risk.kind} between {risk.lower:.3f} and {risk.upper:.3f} from {risk.errors} errors in {risk.labels} "
            f"labels{limit}",
        )
    if status.withdrawn is not None:
        console.warn(f"the certificate is withdrawn: {status.withdrawn}")


def _interval(value: EstimateWithInterval) -> str:
    return f"{value.estimate:.3f} [{value.low:.3f}, {value.high:.3f}]"
