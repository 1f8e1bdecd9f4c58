"""The HTML report, in a real browser: light, dark, on a phone, by keyboard, and with hostile names."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from neuromanifold_gpt.certify import certify

from .browser import measured, picture
from .running import NUMPY

HOSTILE = """
import json, os, sys, time
from pathlib import Path
out = Path(sys.argv[1])
path = out / "<script>document.title='owned'<$script>.json"
state = json.loads(path.read_text()) if path.exists() else {"step": 0, "<img src=x onerror=alert(1)>": 1.5}
if state["step"]:
    state["<img src=x onerror=alert(1)>"] += 0.25
while state["step"] < 20:
    state["step"] += 1
    state["<img src=x onerror=alert(1)>"] *= 1.01
    with open(out / "log.jsonl", "a") as log:
        value = state["<img src=x onerror=alert(1)>"]
        row = {"step": state["step"], "loss $x_1 <b onclick='x'>&amp;": value, "learning_rate": 0.1}
        log.write(json.dumps(row) + "\\n")
    time.sleep(0.005)
    if state["step"] % 5 == 0:
        (out / "tmp").write_text(json.dumps(state))
        os.replace(out / "tmp", path)
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("page") / "work"
    resume = [*NUMPY, "--steps=20", "--bug=rng"]
    certify([*NUMPY, "--steps=20"], resume_command=resume, work=work, at_steps=[8, 13])
    return work / "report.html"


def test_it_is_one_file_without_network(page: Path):
    text = page.read_text()
    assert not re.findall(r'(?:src|href)\s*=\s*"(?!#)', text)
    assert not re.findall(r"url\((?!#)|@import|<script|<link", text)
    outside = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert len(text) < 1_000_000


def test_light_and_dark_follow_the_system(page: Path, tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    brightness = []
    for dark in (False, True):
        with image.open(picture(page, tmp_path / "page.png", dark=dark)) as shot:
            grey = shot.convert("L").histogram()
        brightness.append(sum(value * count for value, count in enumerate(grey)) / sum(grey))
    assert brightness[0] > 200
    assert brightness[1] < 80


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_screen(page: Path, width: int):
    # An element that scrolls by itself may be wider inside.
    assert int(measured(page, width, "page.documentElement.scrollWidth")) <= width
    assert float(measured(page, width, "parseFloat(getComputedStyle(page.body).fontSize)")) >= 16


def test_everything_can_be_reached_from_the_keyboard(page: Path):
    script = (
        "[...page.querySelectorAll('.scroll, pre')].every(e => e.tabIndex === 0) && "
        "page.querySelectorAll('summary').length === 2 && page.querySelector('a').className === 'skip' && "
        "[...page.querySelectorAll('a')].every(a => page.getElementById(a.hash.slice(1)))"
    )
    assert measured(page, 1200, script) == "true"


def test_the_curves_are_there_and_have_names(page: Path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, so the report has no curves")
    titles = "svg => page.getElementById(svg.getAttribute('aria-labelledby')).textContent"
    found = measured(page, 1200, f"[...page.querySelectorAll('svg')].map({titles})")
    assert found == "Loss of every step,Difference from the undisturbed run,Learning rate of every step"
    ids = "(all => all.length - new Set(all).size)([...page.querySelectorAll('[id]')].map(e => e.id))"
    assert measured(page, 1200, ids) == "0"
    assert "1. SIGKILL at step 8: from step 6" in page.read_text()


def test_hostile_names_are_text(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(HOSTILE)
    certify([sys.executable, str(program), "{out}"], work=tmp_path / "work", at_steps=[12])
    page = tmp_path / "work" / "report.html"
    assert measured(page, 1200, "page.title.startsWith('DIVERGED')") == "true"
    assert measured(page, 1200, "page.querySelectorAll('script, img, b').length") == "0"
    assert measured(page, 1200, "page.body.textContent.includes('<img src=x onerror=alert(1)>')") == "true"
    assert measured(page, 1200, "page.body.textContent.includes(\"<script>document.title='owned'\")") == "true"
