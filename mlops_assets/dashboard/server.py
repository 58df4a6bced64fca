"""The dashboard's server, Streamlit behind the guard and with limits: `mlops web dashboard`.

Belongs here: Streamlit's options and how it is started. Does not belong here: the page (`app.py`), who may ask (`guard.py`).
"""

from __future__ import annotations

import socket
from pathlib import Path

from mlops_assets.settings import Settings

#: Photos that are tried; Streamlit keeps them in memory. In MiB.
MAX_UPLOAD_MIB = 32


def run(settings: Settings, listener: socket.socket) -> None:
    """Answer until a signal."""
    from streamlit import App, config

    from mlops_assets import limits
    from mlops_assets.guard import Guard, listed

    options = {
        "server.headless": True,
        "server.address": settings.host,
        "server.port": settings.dashboard_port,
        "server.fileWatcherType": "none",
        "server.maxUploadSize": MAX_UPLOAD_MIB,
        "server.corsAllowedOrigins": listed(settings.allowed_origins),
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
    }
    config.get_config_options(force_reparse=True, options_from_flags=options)
    app = App(Path(__file__).with_name("app.py"))
    most = limits.Limits.of(settings, (MAX_UPLOAD_MIB + 1) * 1024**2)
    limits.run(Guard(app, settings), listener, most, ws="websockets-sansio", ws_max_size=1024**2)
