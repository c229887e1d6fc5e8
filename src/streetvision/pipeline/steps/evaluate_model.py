"""evaluate."""

from streetvision.contracts.phase import Context, Outcome, Phase


def run(context: Context) -> Outcome:
    return Outcome(context.phase)


PHASE = Phase("evaluate", "judge", (), ("splits",), ("evaluation_report",), run)
