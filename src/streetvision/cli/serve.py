"""streetvision serve."""

from typing import Annotated

import typer

from streetvision.cli.options import BundlePath, key_value, open_console

SERVER_SETTINGS = (
    "max_in_flight=128 requests, max_batch=16 images, max_megabytes=20 and max_megapixels=50 per image, "
    "timeout_seconds=10, decoders=2 threads, log=FILE and monitor_state=FILE of streetvision monitor"
)


def serve(
    bundle: BundlePath,
    host: Annotated[str, typer.Option(help="Address; all but loopback need STREETVISION_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one.")] = 8000,
    overrides: Annotated[list[str] | None, key_value(SERVER_SETTINGS)] = None,
) -> None:
    """Serve a bundle over HTTP.

    Routes: /predict, /explain, /healthz, /metrics, /openapi.json, and a page at /.
    """
    from streetvision.serving.launch import serve_bundle

    serve_bundle(bundle, overrides or [], host=host, port=port, console=open_console())
