"""Train the backbone that ships with the package: python scripts/train_scene_backbone.py OUT."""

from pathlib import Path

import typer

from scripts.scene_backbone import Recipe, make_backbone
from streetvision.pipeline.console import Console


def main(out: Path, scenes: int = Recipe.scenes, epochs: int = Recipe.epochs) -> None:
    """Draw scenes, train on them, and write config.json, model.safetensors and README.md to OUT."""
    console = Console()
    console.text(make_backbone(out, Recipe(scenes=scenes, epochs=epochs), console))


if __name__ == "__main__":
    typer.run(main)
