"""A browser shows the chat room in two windows: text typed in one arrives in both, in order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from driving import LIMIT
from driving import redis_url as redis_url  # a fixture
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from with_redis_chat import serve

MESSAGES = 20


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = ChromeOptions()
    options.binary_location = program
    # Root cannot use the sandbox of Chromium.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    with Chrome(options=options, service=Service(driver)) as browser:
        yield browser


def lines(browser: Chrome) -> list[str]:
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('#messages li')].map(line => line.textContent)"
    )
    return found


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_both_windows_show_the_same(server: str, kind: str, browser: Chrome, redis_url: str, tmp_path: Path) -> None:
    with serve(server, redis_url, tmp_path) as address:
        windows = []
        for _ in range(2):
            browser.switch_to.new_window("window")
            browser.get(f"http://{address}/?kind={kind}")
            WebDriverWait(browser, LIMIT).until(lambda browser: lines(browser) == ["welcome"])
            windows.append(browser.current_window_handle)
        for number in range(MESSAGES):
            for name, window in enumerate(windows):
                browser.switch_to.window(window)
                browser.find_element(By.ID, "text").send_keys(f"window {name} says {number}", Keys.ENTER)
        shown = []
        for window in windows:
            browser.switch_to.window(window)
            WebDriverWait(browser, LIMIT).until(lambda browser: len(lines(browser)) == 1 + 2 * MESSAGES)
            shown.append(lines(browser)[1:])
        assert shown[0] == shown[1]
        for name in range(2):
            expected = [f"window {name} says {number}" for number in range(MESSAGES)]
            assert expected == [line for line in shown[0] if line.startswith(f"window {name}")]
        for window in windows:
            browser.switch_to.window(window)
            browser.close()
        browser.switch_to.window(browser.window_handles[0])
