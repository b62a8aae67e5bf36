"""The gallery of examples/nginx in a real browser."""

from __future__ import annotations

import os
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mounts import wait_until
from nginx.conftest import ODD_FOLDER, ODD_NAMES, Served

webdriver = pytest.importorskip("selenium.webdriver")

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


def test_a_click_opens_a_picture_at_full_size_and_keys_go_on(browser: Any, served: Served) -> None:
    open_folder(browser, served, "/pictures")
    sizes = sizes_in_store(served.mount.path / "pictures")
    browser.find_element("css selector", "#pictures a").click()
    for name in ("000.png", "001.png"):
        width, height = sizes[name]
        said = f"{width} \N{MULTIPLICATION SIGN} {height}, "

        def is_shown(name: str = name, said: str = said) -> bool:
            return texts(browser, "#name") == [name] and texts(browser, "#size")[0].startswith(said)

        wait_until(is_shown, f"{name} is shown at full size")
        full = browser.find_element("id", "full")
        assert (full.size["width"], full.size["height"]) == (width, height)
        browser.find_element("css selector", "dialog").send_keys("\ue014")  # the right arrow key
    browser.find_element("css selector", "dialog").send_keys("\ue00c")  # Escape
    viewer = browser.find_element("id", "viewer")
    wait_until(lambda: not viewer.is_displayed(), "the picture is closed")


def test_a_folder_that_is_not_there_is_said_to_be_so(browser: Any, served: Served) -> None:
    open_folder(browser, served, "/nothing")
    assert texts(browser, "#message") == ["There is no such folder."]
