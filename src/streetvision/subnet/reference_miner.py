"""The subnet's stock miner, as far as a model meets it: load a folder, answer images, print one JSON line each.

python stock_miner.py FOLDER < paths, one a line

It runs by itself in any environment with transformers (the subnet pins 4.45.2), so it imports nothing of streetvision.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator


def answers(folder: str, paths: Iterable[str]) -> Iterator[dict[str, object]]:
    """The answer for each image, `output["Roadwork"]` of the stock pipeline; -1 where there is none."""
    import transformers
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    model = AutoModelForImageClassification.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, use_fast=True)  # type: ignore[no-untyped-call]
    processing = "image_processor" if int(transformers.__version__.split(".")[0]) >= 5 else "feature_extractor"
    classify = pipeline("image-classification", model=model, device="cpu", **{processing: processor})
    for path in paths:
        started = time.perf_counter()
        scores = {entry["label"]: entry["score"] for entry in classify(path)}
        answer = {"image": path, "answer": scores.get("Roadwork", -1), "seconds": time.perf_counter() - started}
        yield {**answer, "transformers": transformers.__version__}


if __name__ == "__main__":
    for found in answers(sys.argv[1], (line.rstrip("\n") for line in sys.stdin)):
        sys.stdout.write(json.dumps(found) + "\n")
