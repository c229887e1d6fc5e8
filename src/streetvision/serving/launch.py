"""From a command line to a running server."""

import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from streetvision.bundle.predictor import load_bundle
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.progress import Progress
from streetvision.serving.server import ServingConfig, create_app

KEY_VARIABLE = "STREETVISION_API_KEY"


def serve_bundle(bundle: Path, overrides: Sequence[str], *, host: str, port: int, console: Progress) -> None:
    """Serve until interrupted; raises ConfigError for settings that are none, or an open address without a key."""
    config = serving_config(overrides, api_key=os.environ.get(KEY_VARIABLE))
    if config.api_key is None and not is_loopback(host):
        raise ConfigError(
            f"{host!r} can be reached by others, and there is no API key",
            f"set {KEY_VARIABLE} in the environment, or serve on 127.0.0.1",
        )
    import uvicorn

    with _listening(host, port) as listener:
        app = create_app(load_bundle(bundle), config)
        address = f"http://{host}:{listener.getsockname()[1]}/"
        console.line("serving", f"{address}  (at most {config.max_in_flight} requests in flight)")
        # h11 bounds the length of the headers; the other that uvicorn may find does not.
        settings = uvicorn.Config(app, http="h11", log_level="warning", server_header=False)
        uvicorn.Server(settings).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; raises ConfigError where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}", "give another --port or --host") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serving_config(overrides: Sequence[str], *, api_key: str | None) -> ServingConfig:
    """The limits, changed by KEY=VALUE; the key comes from the environment, where no list of processes shows it."""
    pairs = dict(override.partition("=")[::2] for override in overrides)
    if "api_key" in pairs:
        raise ConfigError("api_key is not given on the command line", f"set {KEY_VARIABLE} in the environment")
    try:
        return ServingConfig.model_validate({**pairs, "api_key": api_key or None})
    except ValidationError as error:
        first = error.errors()[0]
        choices = ", ".join(name for name in ServingConfig.model_fields if name != "api_key")
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", f"settings: {choices}") from error
