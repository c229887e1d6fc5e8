"""The images on which a deployed model abstained, from the files that `streetvision predict` writes."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from streetvision.bundle.batch.shards import ShardFolder
from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import read_bytes


def _escape_surrogates(name: object) -> object:
    """Labels are stored as UTF-8, so a name that is not UTF-8 is made one that no file has."""
    return name.encode(errors="backslashreplace").decode() if isinstance(name, str) else name


class _Line(BaseModel):
    """What is read of a prediction."""

    model_config = ConfigDict(extra="ignore")

    image: Annotated[str, BeforeValidator(_escape_surrogates), Field(min_length=1, max_length=4096)]
    probability: Annotated[float, Field(ge=0, le=1)] | None = None
    certified: int | None = None


def abstained_images(path: Path) -> tuple[list[Path], int]:
    """Return the images without a certified prediction, the most uncertain first, and the number of the others.

    The others are not files of this machine, or their names are not UTF-8.

    Args:
        path: The folder of `predict --out`, or a file with its JSON lines.

    Raises:
        ArtifactError: The predictions are incomplete or damaged.
    """
    files = [path]
    if path.is_dir():
        folder = ShardFolder(path)
        files = [folder.predictions(shard) for shard in range(folder.manifest.shards)]
    found: dict[Path, float] = {}
    missing = 0
    for file in files:
        for number, line in enumerate(read_bytes(file).splitlines(), start=1):
            try:
                row = _Line.model_validate(json.loads(line))  # from bytes: a name may have bytes that are not UTF-8
            except (ValueError, RecursionError) as error:
                raise ArtifactError(f"{str(file)!r} line {number} is not a prediction: {error}") from error
            if row.certified is not None or row.probability is None:
                continue
            image = Path(row.image).absolute()
            if image.is_file():
                found[image] = abs(row.probability - 0.5)
            else:
                missing += 1
    return sorted(found, key=lambda image: found[image]), missing
