"""A script as one writes it without this project: the baseline of `streetvision dev bench pipeline`.

    python -m benchmarks.baseline_script SCENES OUT.pt

Features of a backbone for labeled scenes, scikit-learn's logistic regression on them, a threshold from a grid, and the
MCC on held-out scenes. It has no data check, calibration, certificate or records.
"""

# ruff: noqa: T201

import csv
import random
import sys
from pathlib import Path

import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from transformers import AutoModel

WEIGHTS = Path(__file__).parents[1] / "src" / "streetvision" / "assets" / "dinov3_scenes"
SIZE, MEAN, STD = 160, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Scenes(Dataset[tuple[torch.Tensor, int]]):
    """Images and labels of an index.csv."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with (folder / "index.csv").open() as file:
            self.rows = list(csv.DictReader(file))
        random.Random(0).shuffle(self.rows)  # noqa: S311 (no secret)
        steps = [v2.Resize((SIZE, SIZE)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
        self.transform = v2.Compose([*steps, v2.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self.rows[index]
        image = Image.open(self.folder / row["path"]).convert("RGB")
        return self.transform(image), int(row["label"] in {"1", "Roadwork"})


def main(folder: Path, out: Path) -> None:
    """Fit on 60 %, choose a threshold on 20 %, evaluate on 20 %."""
    backbone = AutoModel.from_pretrained(WEIGHTS).eval()
    features, labels = [], []
    with torch.no_grad():
        for images, batch in DataLoader(Scenes(folder), batch_size=32):
            tokens = backbone(images).last_hidden_state
            features.append(torch.cat([tokens[:, 0], tokens[:, 5:].mean(dim=1)], dim=1))
            labels.append(batch)
    x, y = torch.cat(features).numpy(), torch.cat(labels).numpy()
    first, second = int(0.6 * len(y)), int(0.8 * len(y))
    model = LogisticRegression(max_iter=1000).fit(x[:first], y[:first])
    p = model.predict_proba(x)[:, 1]
    grid = [i / 100 for i in range(1, 100)]
    threshold = max(grid, key=lambda t: matthews_corrcoef(y[first:second], p[first:second] >= t))
    torch.save({"weight": model.coef_, "bias": model.intercept_, "threshold": threshold}, out)
    print(f"MCC {matthews_corrcoef(y[second:], p[second:] >= threshold):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
