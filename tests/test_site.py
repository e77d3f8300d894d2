"""The website builds without a warning, needs nothing from outside, and works in a real browser."""

import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Nothing but the site itself can be reached; everything else is an error in the console.
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1600",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    source = folder / "source"  # a copy: the build writes into it
    for name in ("docs", "notebooks", "results", "README.md", "CONTRIBUTING.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, _made(source) / name)
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, str(source / "docs"), str(folder / "site")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "site"


def _made(folder):
    folder.mkdir(exist_ok=True)
    return folder


class Addresses(HTMLParser):
    """What a page loads: scripts, styles, pictures, frames."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in {"script", "img", "iframe", "source", "video"} and values.get("src"):
            self.found.append(values["src"])
        if tag == "link" and values.get("rel") != "canonical" and values.get("href"):
            self.found.append(values["href"])


def test_it_loads_nothing_from_outside(site):
    pages = list(site.rglob("*.html"))
    lessons = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(path.stem for path in (site / "notebooks").glob("*.html")) == lessons
    assert (site / "api" / "topology.html") in pages
    for page in pages:
        loaded = Addresses(page.read_text(encoding="utf-8")).found
        assert [address for address in loaded if re.match(r"(https?:)?//", address)] == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.fixture(scope="module")
def address(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (BROWSER and DRIVER):
        pytest.skip("no browser: install Debian's packages chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


FORMULAS = "return document.querySelectorAll('.math').length"
RENDERED = "return document.querySelectorAll('.math mjx-container').length"
WRONG_FORMULAS = "return document.querySelectorAll('[data-mjx-error], mjx-merror').length"
MISSING_PICTURES = "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"


def test_every_page_loads_without_an_error_and_with_its_formulas(site, address, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    formulas = 0
    for page in sorted(site.rglob("*.html")):
        browser.get(f"{address}/{page.relative_to(site)}")
        expected = browser.execute_script(FORMULAS)
        if expected:
            WebDriverWait(browser, 60).until(lambda b, n=expected: b.execute_script(RENDERED) >= n)
            assert browser.execute_script(WRONG_FORMULAS) == 0, page
        assert browser.execute_script(MISSING_PICTURES) == [], page
        said = [entry for entry in browser.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]
        assert said == [], page
        formulas += expected
    assert formulas > 50


def test_sliders_change_the_picture(site, address, browser):
    sliders = 0
    for page in sorted((site / "notebooks").glob("*.html")):
        if 'class="explore"' not in page.read_text(encoding="utf-8"):
            continue
        browser.get(f"{address}/notebooks/{page.name}")
        for box in browser.find_elements("class name", "explore"):
            picture, inputs = box.find_element("tag name", "img"), box.find_elements("tag name", "input")
            assert picture.is_displayed()
            first = picture.get_attribute("src")
            for slider in inputs:
                last = slider.get_attribute("max")
                move = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
                browser.execute_script(move, slider, last)
                shown = slider.find_element("xpath", "following-sibling::output").text
                assert shown, page
                assert picture.get_attribute("src") != first, page
                browser.execute_script(move, slider, 0)
                assert picture.get_attribute("src") == first
                sliders += 1
    assert sliders >= 3
