from __future__ import annotations

import re
import shutil

import pytest
from PIL import Image

from vision_lowrank.viz import scan_report
from vision_lowrank.viz.scan_report import write_scan_report

EVIL = "\"'><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">.png"
HEADER = {
    "reading": "A likelihood under this model.",
    "limits": ["It can be wrong.", f"Even {EVIL}"],
    "model": {"identity": "0123456789abcdef", "path": "data/x", "about": {"note": EVIL, "home": "https://example.org"}},
    "preprocessing": {"framing": {"mode": "tile", "size": 224}, "picture": "8-bit RGB"},
    "threshold": 0.61,
    "threshold_origin": "fpr=0.05 on 312 real validation pictures",
    "calibration": {"uncertain": [0.61, 0.83], "reals": 312, "edits": 300},
    "device": "cpu",
    "command": f"vision-lowrank scan '{EVIL}'",
    "environment": {"vision_lowrank": "0.1.0", "git": None, "date": "2025-01-01T00:00:00+00:00"},
    "inputs": 4,
    "other_files": 0,
    "complete": True,
}


def row(path, verdict=None, probability=None, **changes):
    return {
        "path": path,
        "sha256": "ab" * 32,
        "width": 640,
        "height": 480,
        "format": "JPEG",
        "verdict": verdict,
        "probability": probability,
        "boxes": [],
        "cues": [],
        "explanation": f"It is {verdict}.",
        "explained_by": "template",
        "thumbnails": None,
        "warnings": [],
        "error": None,
    } | changes


@pytest.fixture
def rows(tmp_path):
    for kind, colour in (("picture", "red"), ("overlay", "blue")):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (40, 30), colour).save(tmp_path / kind / "a.jpg")
    box = {"xyxy": [1.0, 2.0, 30.5, 20.0], "score": 0.75}
    found = {
        "boxes": [box],
        "cues": [{"name": "texture", "prob": 0.7}],
        "thumbnails": ["picture/a.jpg", "overlay/a.jpg"],
    }
    return [
        row("b/10.jpg", "real", 0.05, warnings=["small", "may be a screenshot"]),
        row("b/9.jpg", "uncertain", 0.7),
        row(EVIL, "edited", 0.97, explanation=f"model says {EVIL}", explained_by="model", **found),
        row("broken.png", error=f"not a picture {EVIL}"),
    ]


@pytest.fixture
def page(rows, tmp_path):
    return write_scan_report(tmp_path / "report.html", HEADER, rows, tmp_path)


def test_the_page_is_self_contained_and_escaped(page):
    text = page.read_text(encoding="utf-8")
    assert "<script>document" not in text
    assert "<img src=x" not in text
    sources = re.findall(r"""(?:src|href|action|url)\s*[=(]\s*["']?([^"'\s)>]*)""", text)
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources if source != "x")
    assert text.count("<script>") == 1
    assert "default-src 'none'" in text
    assert text.count("script-src 'sha256-") == 1


def test_the_most_suspicious_come_first_and_only_so_many_have_pictures(rows, tmp_path, monkeypatch):
    many = [dict(rows[2], path=f"{number}.jpg", probability=number / 10) for number in range(5)]
    monkeypatch.setattr(scan_report, "PICTURES", 2)
    text = write_scan_report(tmp_path / "x.html", HEADER, many, tmp_path).read_text()
    assert re.findall(r'<tbody data-path="(\d)', text) == ["4", "3", "2", "1", "0"]
    assert text.count("<figure>") == 4
    assert "the other 3 have their numbers only" in text


def test_lost_thumbnails_odd_names_and_a_stopped_scan_are_shown(rows, tmp_path):
    (tmp_path / "overlay" / "a.jpg").unlink()
    rows[0]["path"] = "\udcff.png"
    header = HEADER | {"complete": False, "inputs": 9}
    text = write_scan_report(tmp_path / "x.html", header, rows, tmp_path).read_text(encoding="utf-8")
    assert "<figure>" not in text
    assert "5 pictures are missing here" in text


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a system Chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, page):
    """The page in a browser; `requests` are those it must not make, `problems` what its console complains of."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(5000)
    tab.requests, tab.problems = [], []

    def refuse(route):
        if route.request.url == page.as_uri() or route.request.url.startswith("data:"):
            route.continue_()
        else:
            tab.requests.append(route.request.url)
            route.abort()

    tab.route("**/*", refuse)
    tab.on("console", lambda message: tab.problems.append(message.text))
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.goto(page.as_uri())
    yield tab
    tab.close()


def paths(tab):
    return tab.locator("#scan tbody:visible bdi").all_text_contents()


def test_nothing_is_requested_and_names_are_shown_literally(opened):
    assert paths(opened)[0] == EVIL
    assert EVIL in opened.locator("#scan dd").filter(has_text="model says").first.text_content()
    opened.locator(".name button").first.click()
    images = opened.locator("#scan tbody").first.locator("img")
    assert images.count() == 3
    for number in range(3):
        images.nth(number).scroll_into_view_if_needed()
        assert images.nth(number).evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert opened.title() == "Scan of 4 pictures"
    assert opened.requests == []
    assert opened.problems == []


def test_columns_sort_both_ways(opened):
    natural = ["b/9.jpg", "b/10.jpg", "broken.png"]
    by = {name: opened.get_by_role("button", name=name, exact=True) for name in ("picture", "likelihood", "regions")}
    by["likelihood"].click()
    assert paths(opened) == [EVIL, "b/9.jpg", "b/10.jpg", "broken.png"]
    heading = opened.locator("th", has=by["likelihood"])
    assert heading.get_attribute("aria-sort") == "descending"
    by["likelihood"].click()
    assert paths(opened) == ["broken.png", "b/10.jpg", "b/9.jpg", EVIL]
    assert heading.get_attribute("aria-sort") == "ascending"
    by["picture"].click()
    assert [path for path in paths(opened) if path != EVIL] == natural
    assert heading.get_attribute("aria-sort") is None
    by["regions"].click()
    assert paths(opened)[0] == EVIL


def test_verdicts_and_text_filter(opened):
    opened.get_by_label("real").uncheck()
    opened.get_by_label("no answer").uncheck()
    assert paths(opened) == [EVIL, "b/9.jpg"]
    assert opened.locator("#shown").text_content() == "2 of 4 shown"
    opened.get_by_label("Filter by text").fill("B/9")
    assert paths(opened) == ["b/9.jpg"]
    opened.get_by_label("Filter by text").fill("texture")
    assert paths(opened) == [EVIL]
    opened.get_by_label("Filter by text").fill("screenshot")
    assert paths(opened) == []
    opened.get_by_label("real").check()
    assert paths(opened) == ["b/10.jpg"]


def test_the_keyboard_reaches_everything(opened):
    opened.get_by_label("edited").focus()
    opened.keyboard.press("Space")
    assert EVIL not in paths(opened)
    opened.keyboard.press("Space")
    opened.get_by_role("button", name="likelihood", exact=True).focus()
    opened.keyboard.press("Enter")
    first = opened.locator(".name button").first
    first.focus()
    detail = opened.locator("#scan tbody").first.locator(".detail")
    assert detail.is_hidden()
    opened.keyboard.press("Enter")
    assert detail.is_visible()
    assert first.get_attribute("aria-expanded") == "true"
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.getAttribute('aria-expanded')") == "false"


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_fits_a_phone(opened, width):
    opened.set_viewport_size({"width": width, "height": 700})
    opened.locator(".name button").first.click()
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_without_scripts_everything_is_shown(browser, page):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.locator(".detail:visible").count() == 4
    assert tab.locator("#controls").is_hidden()
    context.close()
