"""Write docs/images/report.png, the top of a run's report: python scripts/report_picture.py RUN."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import FloatRect, sync_playwright

from streetvision.contracts.artifact_schema import ArtifactSchema

TARGET = Path(__file__).parents[1] / "docs" / "images" / "report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SCREEN_WIDTH = 1280
LAST_HEADING = "Plots"
"""The picture ends above this heading."""
MARGIN = 20
"""Pixels of the picture above this heading."""


def draw(report: Path, target: Path) -> None:
    """Save the page from its top to LAST_HEADING, without the empty sides."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": SCREEN_WIDTH, "height": 900})
        page.goto(report.resolve().as_uri())
        main = page.locator("main").bounding_box()
        heading = page.get_by_role("heading", name=LAST_HEADING, exact=True).bounding_box()
        if main is None or heading is None:
            sys.exit(f"{report} has no heading {LAST_HEADING}")
        clip = FloatRect(x=main["x"], y=0, width=main["width"], height=heading["y"] - MARGIN)
        page.screenshot(path=target, clip=clip, full_page=True)
        chromium.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    draw(ArtifactSchema(Path(sys.argv[1])).report_html, TARGET)
