"""The MLflow UI of this machine's runs, as a process of its own on 127.0.0.1."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from maskocr_core.services import tracking


def serve(port: int) -> None:
    """Run the UI until it is interrupted. Raises ValueError if the port is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ValueError(f"port {port} is in use: choose another with --port") from None
    print(f"MLflow UI on http://127.0.0.1:{port} (tracking {tracking.uri()}); Ctrl-C ends it", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", tracking.uri()]
    if folder := tracking.embedded():
        command += ["--artifacts-destination", str(folder / "mlartifacts")]
    # Its job workers would start seven processes that nothing here uses.
    environment = os.environ | tracking.QUIET | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    subprocess.run(command, env=environment, check=False)
