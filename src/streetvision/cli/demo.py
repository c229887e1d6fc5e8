"""streetvision demo."""

import sys

from streetvision.cli.options import Overrides, exit_if_collapsed, open_console, print_evaluation, run_training


def demo(overrides: Overrides = None) -> None:
    """Run six phases on drawn scenes and write the report.

    The run folder is outputs/demo.
    """
    import platform
    from importlib import resources
    from pathlib import Path

    from streetvision.pipeline.machine import describe_device

    console = open_console()
    console.line("environment", f"{sys.prefix}  (python {platform.python_version()}, {describe_device()})")
    packaged = Path(str(resources.files("streetvision"))) / "configs" / "demo.yaml"
    schema = run_training(["run_dir=outputs/demo", *(overrides or [])], packaged, console)
    from streetvision.pipeline.config import compose_config
    from streetvision.pipeline.run import launch_evaluation

    launch_evaluation(schema.export_dir, compose_config([]), console=console)
    print_evaluation(schema, schema.export_dir, console)
    exit_if_collapsed(schema, console)
