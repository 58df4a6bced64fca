"""The platform's web servers as processes: as `mlops up` starts them, and bare, as their makers document them (the control)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from mlops_assets import dashboard
from mlops_assets.settings import Settings, process_environment
from mlops_assets.up import mlflow_environment
from mlops_assets_tests.conftest import free_port, wait_for

PYTHON = [sys.executable, "-m"]
MLOPS = [sys.executable, str(Path(sys.executable).with_name("mlops"))]
#: What is asked until a service answers, and what a page of it is.
PATHS = {
    "dagster": "/server_info",
    "serve": "/livez",
    "staging": "/livez",
    "dashboard": "/_stcore/health",
    "tensorboard": "/",
    "mlflow": "/health",
    "otp_demo": "/livez",
}
_BARE_SERVER = """
import uvicorn
from mlops_assets.settings import load_settings
from mlops_assets.serving.app import create_app
settings = load_settings()
uvicorn.run(create_app(settings, {channel!r}), host=settings.host, port=settings.{name}_port, http="httptools", ws="none", log_config=None)
"""


@dataclass
class Service:
    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


def command(name: str, settings: Settings, *, bare: bool = False) -> list[str]:
    """How a service is started behind the guard, or without it."""
    port, host = str(getattr(settings, f"{name}_port")), settings.host
    mlflow = [*PYTHON, "mlflow", "server", "--host", host, "--port", port, "--workers", "1"]
    if bare:
        return {
            "dagster": [*PYTHON, "dagster_webserver", "-h", host, "-p", port, "-w", str(settings.dagster_home / "workspace.yaml")],
            "serve": [sys.executable, "-c", _BARE_SERVER.format(channel="champion", name="serve")],
            "staging": [sys.executable, "-c", _BARE_SERVER.format(channel="candidate", name="staging")],
            "dashboard": [*PYTHON, "streamlit", "run", str(Path(dashboard.__file__).parent / "app.py"), "--server.headless", "true"]
            + ["--server.address", host, "--server.port", port, "--browser.gatherUsageStats", "false"],
            "tensorboard": [*PYTHON, "tensorboard.main", "--logdir", str(settings.home), "--host", host, "--port", port],
            "mlflow": mlflow,
        }[name]
    return {
        "dagster": [*MLOPS, "web", "dagster"],
        "serve": [*MLOPS, "serve"],
        "staging": [*MLOPS, "serve", "--channel", "candidate"],
        "dashboard": [*MLOPS, "web", "dashboard"],
        "tensorboard": [*MLOPS, "web", "tensorboard"],
        "mlflow": mlflow,
        "otp_demo": [*PYTHON, "mlops_assets.otp_demo"],
    }[name]


@contextmanager
def started(name: str, settings: Settings, *, bare: bool = False, environment: Mapping[str, str] | None = None) -> Iterator[Service]:
    """The service on a free port, once it answers; it and what it started are gone afterwards."""
    settings = settings.model_copy(update={f"{name}_port": free_port()})
    settings.home.mkdir(parents=True, exist_ok=True)
    log = settings.home / f"{name}.{'bare' if bare else 'guarded'}.log"
    url = f"http://127.0.0.1:{getattr(settings, f'{name}_port')}"
    if name == "mlflow":
        environment = mlflow_environment(settings) | dict(environment or {}) | ({"MLFLOW_UVICORN_OPTS": ""} if bare else {})
    inherited = {k: v for k, v in process_environment().items() if not k.startswith("MLOPS_")}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(name, settings, bare=bare),
            env=inherited | settings.environment() | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    service = Service(name, url, process, log)
    try:
        wait_for(_answers(service), f"{name} answers", 120)
        yield service
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(15)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        process.wait()


def _answers(service: Service) -> Callable[[], bool]:
    def look() -> bool:
        assert service.process.poll() is None, service.said
        try:
            return httpx.get(service.url + PATHS[service.name], timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    return look
