"""Digits as somebody draws them: strokes between points that tremble, so that no two are alike; and sessions that confirm them."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from sqlalchemy import Engine, text

from mlops_assets import otp

SECRET = "a secret of at least thirty-two characters"
VERIFY_URL = "https://bank.example/verify"

#: Points of the strokes in a unit square, y downwards.
STROKES: dict[str, list[list[tuple[float, float]]]] = {
    "0": [[(0.5, 0.1), (0.25, 0.3), (0.25, 0.7), (0.5, 0.9), (0.75, 0.7), (0.75, 0.3), (0.5, 0.1)]],
    "1": [[(0.35, 0.3), (0.5, 0.1), (0.5, 0.9)]],
    "2": [[(0.25, 0.3), (0.5, 0.1), (0.75, 0.3), (0.25, 0.9), (0.8, 0.9)]],
    "3": [[(0.25, 0.15), (0.7, 0.2), (0.45, 0.45), (0.75, 0.7), (0.25, 0.9)]],
    "4": [[(0.6, 0.1), (0.2, 0.6), (0.8, 0.6)], [(0.6, 0.35), (0.6, 0.95)]],
    "5": [[(0.75, 0.1), (0.3, 0.1), (0.3, 0.45), (0.7, 0.55), (0.65, 0.85), (0.25, 0.9)]],
    "6": [[(0.65, 0.1), (0.3, 0.5), (0.35, 0.85), (0.65, 0.85), (0.65, 0.55), (0.3, 0.6)]],
    "7": [[(0.2, 0.1), (0.8, 0.1), (0.4, 0.9)]],
    "8": [[(0.5, 0.45), (0.3, 0.25), (0.5, 0.1), (0.7, 0.25), (0.3, 0.7), (0.5, 0.9), (0.7, 0.7), (0.5, 0.45)]],
    "9": [[(0.7, 0.4), (0.4, 0.45), (0.35, 0.15), (0.65, 0.12), (0.7, 0.4), (0.6, 0.9)]],
}


def drawing(digit: str, seed: int, *, tremor: float = 0.05, side: int = 160, pen: int = 8) -> Image.Image:
    """A digit, black on white; every seed draws it differently."""
    random = np.random.default_rng(seed)
    picture = Image.new("L", (side, side), "white")
    pencil = ImageDraw.Draw(picture)
    for stroke in STROKES[digit]:
        points = (np.array(stroke) + random.normal(0, tremor, (len(stroke), 2))).clip(0.03, 0.97) * side
        pencil.line([(float(x), float(y)) for x, y in points], fill="black", width=pen, joint="curve")
    return picture


def png(picture: Image.Image, **more: Any) -> str:
    """Base64 of a PNG, as the page sends one."""
    file = io.BytesIO()
    picture.save(file, "PNG", **more)
    return base64.b64encode(file.getvalue()).decode()


def token(user: str = "user-1", length: int = 6, session_id: str | None = None, **more: Any) -> str:
    return otp.make_token(SECRET, user, length, VERIFY_URL, session_id=session_id, **more)


def session_of(given: str) -> str:
    return otp.read_token(SECRET, given).id


def confirmation(given: str, code: str, *, save: bool = True, seed: int = 0, **more: Any) -> dict[str, Any]:
    """The body that the page sends when a user has drawn and confirmed `code`."""
    entries = [
        {
            "drawn": png(drawing(digit, seed * 100 + place)) if save else None,
            "first": digit if save else None,
            "asked_again": 0,
            "version": "1",
        }
        for place, digit in enumerate(code)
    ]
    return {"session": given, "entries": entries, "save": save, **({"digits": code} if save else {}), **more}


def callback(given: str, code: str, secret: str = SECRET) -> dict[str, str]:
    """The body that the back-end sends when `code` was right."""
    session = session_of(given)
    return {"session": session, "mac": otp.verified_mac(secret, session, code)}


def left_behind(databases: Iterable[Engine], folders: Iterable[Path]) -> dict[str, str]:
    """Where something of a code could have been left -> all text that is there."""
    found = {}
    for engine in databases:
        with engine.connect() as connection:
            for table in connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars().all():
                lines = connection.execute(text(f"SELECT t::text FROM {table} t ORDER BY ctid")).scalars()
                found[f"table {table}"] = "\n".join(lines)
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        found[str(path)] = str(path) + path.read_bytes().decode("latin-1")
    return found


def places(found: dict[str, str], code: str, session: str) -> list[str]:
    """Where the code, its digits in order, or the session's id stands. A code inside of a longer number or digest is none."""
    in_order = re.compile(r"(?<![0-9a-f.])" + r"[\s\"',{}\[\]]*".join(code) + r"(?![0-9a-f])")
    return [where for where, content in found.items() if in_order.search(content) or session in content]
