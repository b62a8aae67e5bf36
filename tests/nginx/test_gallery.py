"""The gallery of examples/nginx in a real browser."""

from __future__ import annotations

import contextlib
import io
import json
import mimetypes
import os
import shutil
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mounts import wait_until
from nginx.conftest import ODD_FOLDER, ODD_NAMES, Served
from PIL import Image

webdriver = pytest.importorskip("selenium.webdriver")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys

GALLERY = Path(__file__).resolve().parents[2] / "examples/nginx/gallery"
# Width and height of the pictures that a test's own server has.
SIZES = {"wide.png": (3000, 1000), "tall.png": (1000, 3000), "large.png": (2500, 2400)}

# Loads those that are still out of sight too, and waits until each is decoded or has failed.
LOAD_ALL = """
const done = arguments[0];
const images = [...document.querySelectorAll("#pictures img")];
Promise.all(images.map((image) => {
  image.loading = "eager";
  return image.decode().then(() => [image.alt, image.naturalWidth, image.naturalHeight],
                             () => [image.alt, 0, 0]);
})).then(done);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1200,800",
        f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        # selenium asks chromedriver over HTTP, which a proxy must not get to see.
        for variable in ("NO_PROXY", "no_proxy"):
            patch.setenv(variable, "127.0.0.1,localhost")
        service = webdriver.ChromeService(executable_path=driver)
        browser = webdriver.Chrome(options=options, service=service)
        try:
            browser.set_script_timeout(60)
            yield browser
        finally:
            browser.quit()


@dataclass
class Scripted:
    """A server of the gallery whose pictures come when a test says so.

    Attributes:
        url: of the gallery.
        failures: how often pictures are still answered with 503, by name.
        held: pictures that wait for their event, by name.
        asked: for what, in order; decoded.
    """

    url: str = ""
    failures: Counter[str] = field(default_factory=Counter)
    held: dict[str, threading.Event] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        folder, _, name = path.rpartition("/")
        if path in ("/", "/gallery.css", "/gallery.js"):
            file = GALLERY / (name or "index.html")
            return 200, mimetypes.guess_type(file)[0] or "", file.read_bytes()
        if folder == "/art":
            if name in self.held:
                self.held[name].wait(timeout=60)
            if self.failures[name]:
                self.failures[name] -= 1
                return 503, "text/plain", b"It can't be had at the moment.\n"
            return 200, "image/png", picture(*SIZES[name])
        if path == "/list/":
            entries = [{"name": name, "type": "file", "size": 1} for name in SIZES]
            entries += [{"name": f"{number:03}", "type": "directory"} for number in range(300)]
            return 200, "application/json", json.dumps(entries).encode()
        if folder.startswith("/list/"):
            if self.failures[folder]:
                self.failures[folder] -= 1
                return 503, "text/plain", b""
            entries = [{"name": f"{number:03}", "type": "directory"} for number in range(400)]
            return 200, "application/json", json.dumps(entries).encode()
        return 404, "text/plain", b""


def picture(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "green").save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urllib.parse.unquote(self.path)
            script.asked.append(path)
            status, kind, body = script.answer(path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield script
    finally:
        for event in script.held.values():
            event.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def phone(browser: Any) -> Iterator[Any]:
    """A small window of the browser, with a touch screen."""
    size = {"width": 390, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    yield browser
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def open_scripted(browser: Any, scripted: Scripted, folder: str = "/") -> None:
    browser.get("about:blank")
    browser.get(f"{scripted.url}/#{folder}")
    wait_for_folder(browser, folder)


def open_picture(browser: Any, name: str) -> None:
    browser.find_element("css selector", f'#pictures a[title="{name}"]').click()


def wait_for_picture(browser: Any, name: str) -> None:
    width, height = SIZES[name]
    wanted = f"{width} \N{MULTIPLICATION SIGN} {height}, "
    wait_until(
        lambda: texts(browser, "#name") == [name] and texts(browser, "#size")[0].startswith(wanted),
        f"{name} is shown",
    )


def box(browser: Any, selector: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of an element in the window."""
    script = (
        f"const box = document.querySelector('{selector}').getBoundingClientRect();"
        "return [box.left, box.top, box.right, box.bottom]"
    )
    left, top, right, bottom = browser.execute_script(script)
    return left, top, right, bottom


def assert_all_in_window(browser: Any, *selectors: str) -> None:
    width, height = browser.execute_script("return [innerWidth, innerHeight]")
    for selector in selectors:
        left, top, right, bottom = box(browser, selector)
        assert (left >= -0.5, top >= -0.5) == (True, True), selector
        assert (right <= width + 0.5, bottom <= height + 0.5) == (True, True), selector


def swipe(browser: Any, begin: tuple[int, int], end: tuple[int, int]) -> None:
    def touch(kind: str, *points: tuple[int, int]) -> None:
        at = [{"x": x, "y": y} for x, y in points]
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    touch("touchStart", begin)
    touch("touchMove", end)
    touch("touchEnd")


def wait_for_folder(browser: Any, folder: str) -> None:
    script = "return document.body.dataset.folder"
    wait_until(lambda: browser.execute_script(script) == folder, f"{folder} is shown")


def open_folder(browser: Any, served: Served, folder: str) -> None:
    browser.get(f"{served.nginx.url}/#{urllib.parse.quote(folder)}/")
    wait_for_folder(browser, folder)


def sizes_in_store(folder: Path) -> dict[str, tuple[int, int]]:
    sizes = {}
    for path in folder.iterdir():
        shape = os.getxattr(path, "user.latentfs.latent_shape").decode()
        _, down, across = map(int, shape.split("x"))
        sizes[path.name] = (across * 8, down * 8)
    return sizes


def texts(browser: Any, selector: str) -> list[str]:
    found: list[str] = browser.execute_script(
        f"return [...document.querySelectorAll('{selector}')].map((node) => node.textContent)"
    )
    return found


def test_the_browser_decodes_every_picture_to_its_size(browser: Any, served: Served) -> None:
    for folder in ("/pictures", "/jpeg"):
        open_folder(browser, served, folder)
        shown = {
            name: (width, height) for name, width, height in browser.execute_async_script(LOAD_ALL)
        }
        assert shown == sizes_in_store(served.mount.path / folder.strip("/"))


def test_pictures_out_of_sight_are_not_asked_for(browser: Any, served: Served) -> None:
    browser.get("about:blank")
    open_folder(browser, served, "/pictures")
    first = "return document.querySelector('#pictures img').naturalWidth"
    wait_until(lambda: browser.execute_script(first) > 0, "the first picture is decoded")
    missing = (
        "return [...document.querySelectorAll('#pictures img')].filter((i) => !i.complete).length"
    )
    assert browser.execute_script(missing) > 20


def test_folders_are_followed_by_clicks_and_back(browser: Any, served: Served) -> None:
    open_folder(browser, served, "/")
    assert {"pictures", "jpeg", ODD_FOLDER} <= set(texts(browser, "#folders a"))
    browser.find_element("link text", "jpeg").click()
    wait_for_folder(browser, "/jpeg")
    assert texts(browser, "#count") == ["2 pictures"]
    browser.back()
    wait_for_folder(browser, "/")


def test_odd_names_are_text_and_nothing_else(browser: Any, served: Served) -> None:
    browser.get_log("browser")
    open_folder(browser, served, "/")
    browser.find_element("link text", ODD_FOLDER).click()
    wait_for_folder(browser, f"/{ODD_FOLDER}")
    assert texts(browser, "#trail a") == ["Gallery", ODD_FOLDER]
    assert sorted(texts(browser, "#pictures span")) == sorted(ODD_NAMES)
    assert browser.find_elements("css selector", "main b, main i, header i") == []
    decoded = browser.execute_async_script(LOAD_ALL)
    assert {name for name, width, _ in decoded if width} == set(ODD_NAMES)
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


def test_a_click_opens_a_picture_and_keys_go_on(browser: Any, served: Served) -> None:
    open_folder(browser, served, "/pictures")
    sizes = sizes_in_store(served.mount.path / "pictures")
    browser.find_element("css selector", "#pictures a").click()
    for name in ("000.png", "001.png"):
        width, height = sizes[name]
        said = f"{width} \N{MULTIPLICATION SIGN} {height}, "

        def is_shown(name: str = name, said: str = said) -> bool:
            return texts(browser, "#name") == [name] and texts(browser, "#size")[0].startswith(said)

        wait_until(is_shown, f"{name} is shown")
        full = browser.find_element("id", "full")
        assert (full.size["width"], full.size["height"]) == (width, height)
        browser.find_element("css selector", "dialog").send_keys(Keys.ARROW_RIGHT)
    browser.find_element("css selector", "dialog").send_keys(Keys.ESCAPE)
    viewer = browser.find_element("id", "viewer")
    wait_until(lambda: not viewer.is_displayed(), "the picture is closed")


@pytest.mark.parametrize("window", ["browser", "phone"])
def test_a_picture_fits_the_window_with_all_buttons(
    request: pytest.FixtureRequest, scripted: Scripted, window: str
) -> None:
    browser = request.getfixturevalue(window)
    open_scripted(browser, scripted)
    for name in ("wide.png", "tall.png", "large.png"):
        open_picture(browser, name)
        wait_for_picture(browser, name)
        assert_all_in_window(browser, "#full", "#previous", "#next", "#close", "#name", "#size")
        left, top, right, bottom = box(browser, "#full")
        width, height = SIZES[name]
        assert (right - left) / (bottom - top) == pytest.approx(width / height, rel=0.02)
        inner = browser.execute_script("return [innerWidth, innerHeight]")
        assert (right - left) > 0.9 * inner[0] or (bottom - top) > 0.85 * inner[1]
        browser.find_element("id", "close").click()
        wait_until(lambda: not browser.find_element("id", "viewer").is_displayed(), "it is closed")


def test_buttons_and_swipes_go_on_and_back(phone: Any, scripted: Scripted) -> None:
    open_scripted(phone, scripted)
    assert box(phone, "#pictures li:nth-child(2)")[1] == box(phone, "#pictures li")[1]  # two a row
    open_picture(phone, "wide.png")
    wait_for_picture(phone, "wide.png")
    phone.find_element("id", "next").click()
    wait_for_picture(phone, "tall.png")
    phone.find_element("id", "previous").click()
    wait_for_picture(phone, "wide.png")
    swipe(phone, (300, 350), (100, 360))
    wait_for_picture(phone, "tall.png")
    swipe(phone, (200, 300), (190, 500))  # down: nothing
    swipe(phone, (100, 350), (300, 340))
    wait_for_picture(phone, "wide.png")


def test_a_picture_that_has_not_come_is_loading_and_no_other_is_shown(
    browser: Any, scripted: Scripted
) -> None:
    scripted.held["tall.png"] = threading.Event()
    open_scripted(browser, scripted)
    open_picture(browser, "wide.png")
    wait_for_picture(browser, "wide.png")
    browser.find_element("css selector", "dialog").send_keys(Keys.ARROW_RIGHT)
    assert texts(browser, "#name") == ["tall.png"]
    assert texts(browser, "#state") == ["Loading \N{HORIZONTAL ELLIPSIS}"]
    assert browser.execute_script("return document.querySelector('#full').naturalWidth") == 0
    scripted.held["tall.png"].set()
    wait_for_picture(browser, "tall.png")
    assert texts(browser, "#state") == [""]


def test_what_is_503_is_asked_for_again_until_it_comes(browser: Any, scripted: Scripted) -> None:
    scripted.failures.update({"tall.png": 3, "/list/007": 2})
    open_scripted(browser, scripted)
    open_picture(browser, "tall.png")  # its thumbnail has failed, or does it now
    wait_until(lambda: "tried again" in texts(browser, "#state")[0], "the viewer says so")
    wait_for_picture(browser, "tall.png")
    failed = "return document.querySelectorAll('#pictures .failed').length"
    wait_until(lambda: browser.execute_script(failed) == 0, "all thumbnails are there")
    assert scripted.asked.count("/art/tall.png") <= 6
    browser.get(f"{scripted.url}/#/007/")
    wait_until(lambda: texts(browser, "#folders a")[-1:] == ["399"], "the folder is shown")
    assert scripted.asked.count("/list/007/") == 3


def test_a_folder_begins_at_its_top_and_is_left_where_it_was(
    browser: Any, scripted: Scripted
) -> None:
    def scroll() -> float:
        y: float = browser.execute_script("return scrollY")
        return y

    open_scripted(browser, scripted)
    browser.execute_script("scrollTo(0, 900)")
    before = scroll()
    assert before > 300
    browser.execute_script("location.hash = '/007/'")
    wait_for_folder(browser, "/007")
    assert scroll() == 0
    browser.back()
    wait_for_folder(browser, "/")
    assert scroll() == before


def test_keys_with_alt_are_the_browsers(browser: Any, scripted: Scripted) -> None:
    open_scripted(browser, scripted)
    open_picture(browser, "wide.png")
    wait_for_picture(browser, "wide.png")
    pressed = "new KeyboardEvent('keydown', {key: 'ArrowRight', altKey: true, bubbles: true})"
    browser.execute_script(f"document.querySelector('#next').dispatchEvent({pressed})")
    assert texts(browser, "#name") == ["wide.png"]


def test_a_folder_that_is_not_there_is_said_to_be_so(browser: Any, served: Served) -> None:
    open_folder(browser, served, "/nothing")
    assert texts(browser, "#message") == ["There is no such folder."]
