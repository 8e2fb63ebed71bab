"""The page in a browser: nothing overflows, nothing complains, and the controls move what they should.

A copy of the page gets a second script, which the copy's policy allows by its hash and which uses the page as a reader
would. The copy stands in a frame, which may be narrower than a browser's least window; what its script saw is written
into the document around it, which the browser prints.
"""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ann2snn.report.collect import collect
from ann2snn.report.html import page
from tests.report.run_folder import (
    STREAM,
    gap_file,
    report,
    with_times,
    write_costs,
    write_json,
    write_paths,
    write_run,
)

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")

READER = """{
const seen = { ready: document.documentElement.dataset.ready, width: innerWidth, owned: Boolean(window.owned) };
const scroll = () => document.documentElement.scrollWidth - document.documentElement.clientWidth;
const all = (selector) => [...document.querySelectorAll(selector)];
const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
for (const details of all("details")) details.open = true;
seen.overflow = scroll();

const slider = document.querySelector(".path input"), pictures = all(".film img");
const left = (element) => element.getBoundingClientRect().left;
const places = () => pictures.map((picture) => Math.round(left(picture) - left(picture.parentNode)));
seen.last = places();
slider.value = 1;
slider.dispatchEvent(new Event("input"));
seen.first = places();
seen.output = document.querySelector(".path output").textContent;
const button = document.querySelector(".path button");
seen.hasPlay = !button.hidden;

const raster = document.querySelector("svg[data-kind=raster]"), readout = document.querySelector(".readout");
seen.readout = readout.textContent;
press(raster, "ArrowRight");
press(raster, "ArrowRight");
seen.moved = readout.textContent;

const chart = document.querySelector('svg[aria-label="Gap by block"]'), tip = document.querySelector(".tip");
chart.focus();
press(chart, "ArrowRight");
seen.tip = tip.hidden ? "" : tip.textContent;
const mark = chart.querySelectorAll(".mark")[4], box = mark.getBoundingClientRect();
const place = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true };
chart.dispatchEvent(new PointerEvent("pointermove", place));
seen.hovered = tip.textContent;
seen.expected = mark.dataset.says;
seen.overflowAfter = scroll();
seen.titles = all("svg .mark > title").length;
button.click();
setTimeout(() => {
  seen.played = places();
  seen.label = button.textContent;
  parent.postMessage(JSON.stringify(seen), "*");
}, 450);
}"""

AROUND = """<!DOCTYPE html><iframe src="page.html" style="border: 0; width: {width}px; height: 1800px"></iframe>
<pre id="seen"></pre><script>onmessage = (event) => (document.getElementById("seen").textContent = event.data);</script>
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """The page of a run with everything, with names that would run if they were not escaped."""
    folder = tmp_path_factory.mktemp("runs") / "<img src=x onerror=owned=1>"
    write_run(folder)
    hostile = report("stream", STREAM, 0.3, 5.0)
    hostile["blocks"][0]["block"] = "</title></svg><script>owned=1</script>"
    write_json(folder / "gap.json", gap_file(with_times(hostile, 0.5, 2.0)))
    (folder / "flagfile.txt").write_text("--bit=2.0\n--x=</pre><script>owned=1</script>\n" + "--long=" + "x" * 900)
    write_costs(folder)
    write_paths(folder / "trajectory.npz", frames=6)
    return page(collect(folder))


def visited(source: str, folder: Path, width: int, *options: str) -> tuple[dict, str]:
    """(what the reader saw, what the browser said) in a frame of this width."""
    digest = base64.b64encode(hashlib.sha256(READER.encode()).digest()).decode()
    copy = source.replace("script-src ", f"script-src 'sha256-{digest}' ").replace(
        "</html>", f"<script>{READER}</script></html>"
    )
    (folder / "page.html").write_text(copy, encoding="utf-8")
    (folder / "around.html").write_text(AROUND.format(width=width), encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += ["--window-size=1400,2000", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=6000"]
    address = (folder / "around.html").as_uri()
    done = subprocess.run([*command, *options, address], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, flags=re.S)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), done.stderr


@pytest.mark.parametrize("width", [1280, 390])
def test_everything_fits_moves_and_says_what_it_is(source, tmp_path, width):
    calm = width == 390
    seen, said = visited(source, tmp_path, width, *(["--force-prefers-reduced-motion"] if calm else []))
    assert not re.search(r"CONSOLE|Uncaught|Refused", said), said
    assert seen["ready"] == "yes" and not seen["owned"] and seen["width"] == width
    assert seen["overflow"] <= 0 and seen["overflowAfter"] <= 0
    frame = 2 * 128  # of two images
    assert seen["last"] == [-5 * frame] * 3 and seen["first"] == [-frame] * 3 and "state 2 of 6: t = " in seen["output"]
    assert seen["readout"] != seen["moved"] and "step 3 of 3" in seen["moved"] and "level" in seen["moved"]
    assert "head, converted SNN" in seen["tip"] or "script" in seen["tip"]
    assert seen["hovered"] == seen["expected"] and seen["titles"] == 0
    assert seen["hasPlay"] != calm  # who asks for less motion has no button that moves pictures
    if not calm:
        assert seen["label"] == "Pause" and seen["played"][0] < seen["first"][0] and len(set(seen["played"])) == 1
