"""streetvision doctor."""

from streetvision.cli.options import open_console


def doctor() -> None:
    """Check versions, device and disk of this machine."""
    from streetvision.pipeline.machine import examine_machine

    examine_machine(open_console())
