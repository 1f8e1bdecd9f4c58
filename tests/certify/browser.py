"""Debian's Chromium without a window: pictures of a page, and what its scripts and layout make of it."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def _chromium(*arguments: str) -> str:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        run = subprocess.run(
            [program, *_FLAGS, f"--user-data-dir={profile}", *arguments], capture_output=True, text=True, timeout=120
        )
    assert run.returncode == 0, run.stderr
    return run.stdout


def picture(page: Path, to: Path, *, dark: bool = False, width: int = 1200, height: int = 1600) -> Path:
    """A picture of the page's top."""
    scheme = ["--force-dark-mode"] if dark else []
    _chromium(f"--window-size={width},{height}", f"--screenshot={to}", *scheme, page.as_uri())
    return to


def measured(page: Path, width: int, script: str) -> str:
    """What ``script``, an expression on ``page`` (its document), gives when the page is shown so wide.

    Chromium has no window of less than 500 points, so the page stands in a frame.
    """
    frame = (
        f'<iframe id="frame" width="{width}" height="800" srcdoc="{html.escape(page.read_text())}"></iframe>'
        '<output id="result"></output><script>addEventListener("load", () => {'
        'const page = document.getElementById("frame").contentDocument;'
        f'document.getElementById("result").textContent = "[" + ({script}) + "]";}})</script>'
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "frame.html")
        path.write_text(f"<!doctype html><meta charset=utf-8>{frame}")
        dumped = _chromium("--dump-dom", "--virtual-time-budget=2000", path.as_uri())
    found = re.search(r'<output id="result">\[(.*?)\]</output>', dumped, flags=re.DOTALL)
    assert found, dumped[-2000:]
    return html.unescape(found[1])
