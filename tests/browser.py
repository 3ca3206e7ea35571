"""A real browser to open pages in, and names that try to be more than names there."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = "<script>window.ran = 1</script>"
HANDLER = "<img src=x onerror='window.ran = 1'>"
HOSTILE_LABELS = (SCRIPT, "a|b`c*_d_", '" onload="window.ran = 1', "tab\there", "猫", "x\udcff")
HOSTILE_NAMES = (
    f"bird/{SCRIPT}.jpg",
    f"bird/{HANDLER}.jpg",
    "bird/two\nlines\r.jpg",
    "bird/lone\udcff.jpg",
    "bird/\u202egpj.exe",
    "bird/'\"`&amp;{{ 7*7 }}{% raw %}.jpg",
    "bird/nul\x00\x1b[31m.jpg",
    "bird/" + "long" * 60 + ".jpg",
)

# Opens the page in a frame, which lets a width below Chromium's smallest window be tried, and
# writes down what the browser made of it.
PROBE = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe srcdoc="{page}" style="border:0;width:{width}px;height:{height}px"></iframe>
<script>
window.onload = () => {{
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  const all = [...page.querySelectorAll("*")];
  const found = {{
    headings: [...page.querySelectorAll("section h2")].map(e => e.textContent),
    images: [...page.images].map(e => [e.src.slice(0, 22), e.naturalWidth, e.naturalHeight]),
    scripts: page.scripts.length,
    handlers: all.filter(e => e.getAttributeNames().some(a => a.startsWith("on"))).length,
    ran: "ran" in frame.contentWindow,
    loaded: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name),
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    background: getComputedStyle(page.body).backgroundColor,
    text: page.body.textContent,
  }};
  const ascii = JSON.stringify(found).replace(/[\\u007f-\\uffff]/g,
    c => "\\\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
  document.body.append(Object.assign(document.createElement("pre"), {{textContent: ascii}}));
}};
</script>"""

Look = Callable[..., dict[str, Any]]


def open_page(folder: Path, page: str, width: int = 1200, *, dark: bool = False) -> dict[str, Any]:
    """Open HTML in Chromium, which writes to the folder, and give what `PROBE` found."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("chromium is not installed (on Debian: apt-get install chromium)")
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(page=html.escape(page), width=width, height=900), "utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-sync"]
    command += ["--disable-component-update", f"--user-data-dir={folder / 'profile'}"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command += ["--window-size=1300,1000", f"--screenshot={folder / 'screen.png'}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search("<pre>(.*)</pre>", done.stdout, re.DOTALL)
    assert found, f"Chromium ended with {done.returncode}: {done.stderr[-2000:]}"
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result
