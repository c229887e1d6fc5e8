"""The part of the subnet's reference miner that touches a model: load a folder, predict images, print JSON lines.

    python reference_miner.py FOLDER < PATHS    (one path per line)

It runs in any environment with transformers (the subnet pins 4.45.2), so it imports nothing of streetvision.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout


def predictions(folder: str, paths: Iterable[str]) -> Iterator[dict[str, object]]:
    """`output["Roadwork"]` of the image-classification pipeline for each image; -1 when it is missing.

    An image on which the pipeline fails has -1 too, and the error.
    """
    import transformers
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

    model = AutoModelForImageClassification.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, use_fast=True)  # type: ignore[no-untyped-call]
    processing = "image_processor" if int(transformers.__version__.split(".")[0]) >= 5 else "feature_extractor"
    classify = pipeline("image-classification", model=model, device="cpu", **{processing: processor})
    for path in paths:
        started = time.perf_counter()
        scores: dict[str, float] = {}
        failure: dict[str, object] = {}
        try:
            scores = {entry["label"]: entry["score"] for entry in classify(path)}
        except Exception as error:  # Pillow and transformers raise many types for a damaged image
            failure = {"error": " ".join(str(error).split()) or type(error).__name__}
        yield {
            "image": path,
            "probability": scores.get("Roadwork", -1),
            "seconds": time.perf_counter() - started,
            "transformers": transformers.__version__,
            **failure,
        }


if __name__ == "__main__":
    output = sys.stdout
    with redirect_stdout(sys.stderr):  # some libraries print
        # From bytes: a path may have bytes that are not text.
        for row in predictions(sys.argv[1], (os.fsdecode(line.rstrip(b"\n")) for line in sys.stdin.buffer)):
            output.write(json.dumps(row) + "\n")
            output.flush()  # the reader shows the progress
