"""The user's cache folder, where what was seen of calibration samples is kept from one run to the next."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Give ``$POLYCAST_CACHE``, else ``polycast`` under ``$XDG_CACHE_HOME`` or ``~/.cache``; it need not exist."""
    if own := os.environ.get("POLYCAST_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polycast"
