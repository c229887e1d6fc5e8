"""The images on which a deployed model abstained, from the files that `streetvision predict` writes."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streetvision.bundle.batch.shards import ShardFolder
from streetvision.contracts.errors import ArtifactError
from streetvision.io.atomic import parse_json, read_bytes


class _Line(BaseModel):
    """What is read of a prediction."""

    model_config = ConfigDict(extra="ignore")

    image: Annotated[str, Field(min_length=1, max_length=4096)]
    probability: Annotated[float, Field(ge=0, le=1)] | None = None
    certified: int | None = None
    error: str | None = None


def abstained_images(path: Path) -> tuple[list[Path], int]:
    """Return the images without a certified prediction, the most uncertain first, and the number of those not found.

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
                row = _Line.model_validate(parse_json(line))
            except (ValueError, ValidationError) as error:
                raise ArtifactError(f"{str(file)!r} line {number} is not a prediction: {error}") from error
            if row.certified is not None or row.probability is None:
                continue
            image = Path(row.image).absolute()
            if image.is_file():
                found[image] = abs(row.probability - 0.5)
            else:
                missing += 1
    return sorted(found, key=lambda image: found[image]), missing
