"""The result of `streetvision monitor`, as its state file has it for `predict` and `serve`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import Artifact, Digest, EstimateWithInterval, Probability
from streetvision.io.atomic import check_regular

MAX_STATE_BYTES = 64 * 2**20
STATE_HINT = "restore the state file from a copy, or start with a new --state file"
TestName = Literal["images", "quality", "scores"]


class TestStatus(Artifact):
    """One test of exchangeability."""

    reference: int = Field(ge=0)
    """Images of the bundle's reference in the ranks; 0: the stream is compared with its own beginning."""
    log10_martingale: float
    log10_maximum: float
    alarm_at: int | None = None
    """Number, from 1, of the image that raised the alarm, among the images that count; None: there was no alarm."""
    alarm_time: float | None = None
    """Time of this image in seconds since 1970, if the predictions have times."""


class RiskStatus(Artifact):
    """The risk on labeled images."""

    kind: Literal["fnr", "fpr", "error"]
    limit: Probability | None
    """Risk that the bundle certifies; None: it certifies none."""
    labels: int = Field(ge=0)
    """Labeled images that count for the risk, one of each group."""
    errors: int = Field(ge=0)
    lower: Probability
    upper: Probability
    """Bounds that hold at all times."""


class MonitorStatus(Artifact):
    """The result after the last update."""

    schema_version: Literal[1] = 1
    bundle: Digest
    """Digest of the bundle that made the predictions."""
    alpha: Probability
    """Probability that the tests ever raise a false alarm, and the same for the risk."""
    images: int = Field(ge=0)
    """Predictions read."""
    units: int = Field(ge=0)
    """Groups, or images without a group: one image of each counts."""
    without_group: int = Field(ge=0)
    """Predictions without a group."""
    failures: int = Field(ge=0)
    """Images that could not be decoded."""
    tests: dict[TestName, TestStatus]
    prevalence: EstimateWithInterval | None = None
    """Share of class 1 among the units, if only this share has changed; None: it cannot be estimated."""
    recent_prevalence: EstimateWithInterval | None = None
    """The same for the last part of the stream."""
    suited_threshold: Probability | None = None
    """The threshold that suits `recent_prevalence`, chosen as that of the bundle; it is not applied."""
    risk: RiskStatus
    withdrawn: str | None = None
    """Why the certificate is withdrawn; None: it is not."""

    @property
    def alarms(self) -> list[str]:
        """Names of what raised an alarm: images, quality, scores or risk."""
        tests = [name for name, test in self.tests.items() if test.alarm_at is not None]
        return [*tests, *(["risk"] if self.withdrawn else [])]


def read_status(path: Path, *, bundle: str | None = None) -> MonitorStatus:
    """Read the status in a state file.

    Args:
        path: The state file.
        bundle: Digest of the bundle that it must belong to; None: any.

    Raises:
        ArtifactError: The file is missing or damaged, or belongs to another bundle.
    """
    try:
        check_regular(path, limit=MAX_STATE_BYTES)
        with safe_open(path, framework="numpy") as file:
            status = MonitorStatus.model_validate_json((file.metadata() or {}).get("status", ""))
    except (SafetensorError, ValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"cannot read the monitoring state {str(path)!r}: {reason}", STATE_HINT) from error
    if bundle is not None and bundle != status.bundle:
        raise ArtifactError(
            f"the monitoring state {str(path)!r} belongs to bundle {status.bundle[:12]}, not to {bundle[:12]}",
            "give the bundle of this state, or another state file",
        )
    return status


@dataclass
class StatusFile:
    """A state file that another process may replace at any time.

    Args:
        path: The file.
        bundle: Digest of the bundle that uses it.

    Raises:
        ArtifactError: The file cannot be read, or belongs to another bundle.
    """

    path: Path
    bundle: str
    _stamp: tuple[int, int, int] | None = field(init=False, default=None)
    _status: MonitorStatus | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._read()  # for its errors only: `status` takes the stamp before it reads

    @property
    def status(self) -> MonitorStatus | None:
        """The current status; None: the file has become unreadable."""
        try:
            stamp = self._stat()
            if stamp != self._stamp:
                self._status, self._stamp = self._read(), stamp
        except (ArtifactError, OSError):
            self._status, self._stamp = None, None
        return self._status

    @property
    def withdrawn(self) -> str | None:
        """Why no prediction is certified; None: the certificate is not withdrawn. A file that is lost withdraws it."""
        status = self.status
        return "the monitoring state cannot be read" if status is None else status.withdrawn

    def _stat(self) -> tuple[int, int, int]:
        status = self.path.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read(self) -> MonitorStatus:
        return read_status(self.path, bundle=self.bundle)
