"""Start the server from the command line."""

import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fastapi import FastAPI
from pydantic import ValidationError

from streetvision.bundle.predictor import load_bundle
from streetvision.contracts.errors import ConfigError, unknown_name
from streetvision.contracts.progress import Progress
from streetvision.serving.server import ServingConfig, create_app

KEY_VARIABLE = "STREETVISION_API_KEY"


def serve_bundle(bundle: Path, overrides: Sequence[str], *, host: str, port: int, console: Progress) -> None:
    """Serve a bundle until interrupted.

    Raises:
        ConfigError: a setting is invalid, the address cannot be used, or it is public and there is no API key.
    """
    config = serving_config(overrides, api_key=key_from_environment())
    check_host(host, config.api_key)
    with open_listener(host, port) as listener:
        app = create_app(load_bundle(bundle), config)
        address = f"http://{url_host(host)}:{listener.getsockname()[1]}/"
        with suppress(KeyboardInterrupt):  # between this line and the start of the server
            console.line("serving", f"{address}  (at most {config.max_in_flight} requests in flight)")
            run_app(app, listener)


def key_from_environment() -> str | None:
    """Return the API key in the environment; None: there is none.

    Raises:
        ConfigError: No client can send the key in a header.
    """
    key = os.environ.get(KEY_VARIABLE) or None
    if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise ConfigError(
            f"the API key in {KEY_VARIABLE} has white space at an end, or a character that is not printable ASCII",
            "set a key of ASCII letters and digits; a file that is read into the variable may end with a line break",
        )
    return key


def check_host(host: str, api_key: str | None) -> None:
    """Raise ConfigError if `host` is reachable from other machines, and there is no API key."""
    if api_key is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host!r} is reachable from other machines, and there is no API key",
            f"set {KEY_VARIABLE} in the environment, or use --host 127.0.0.1",
        )


def open_listener(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises ConfigError if the address cannot be used."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, ValueError) as error:  # ValueError: the host is no possible name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"cannot listen on {url_host(host)}:{port}: {reason}", "use another --port or --host"
        ) from error


def url_host(host: str) -> str:
    """Return a host as an address has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def run_app(app: FastAPI, listener: socket.socket) -> None:
    """Serve an application until interrupted or terminated."""
    import uvicorn

    # h11 limits the length of the headers; uvicorn's other parser, httptools, does not.
    settings = uvicorn.Config(app, http="h11", log_level="warning", server_header=False)
    # The server shuts down at a signal, and raises it again afterwards.
    with suppress(KeyboardInterrupt), _ignored_sigterm():
        uvicorn.Server(settings).run(sockets=[listener])


@contextmanager
def _ignored_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_loopback(host: str) -> bool:
    """Whether `host` is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serving_config(overrides: Sequence[str], *, api_key: str | None) -> ServingConfig:
    """The server's settings from KEY=VALUE arguments.

    The API key comes from the environment, because other users of the machine can read the arguments of a process.
    """
    values = dict(override.partition("=")[::2] for override in overrides)
    if "api_key" in values:
        raise ConfigError("api_key cannot be set on the command line", f"set {KEY_VARIABLE} in the environment")
    allowed = [name for name in ServingConfig.model_fields if name != "api_key"]
    for name in values:
        if name not in allowed:
            raise unknown_name("setting of serve", name, allowed)
    try:
        return ServingConfig.model_validate({**values, "api_key": api_key})
    except ValidationError as error:
        first = error.errors()[0]
        name, message = ".".join(map(str, first["loc"])), first["msg"]
        raise ConfigError(
            f"{name}={first['input']!r}: {message[:1].lower()}{message[1:]}", f"settings: {', '.join(allowed)}"
        ) from error
