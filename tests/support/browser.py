"""Debian's chromium, without a window."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium import webdriver


@contextmanager
def chromium(*, requests: bool = False) -> Iterator[webdriver.Chrome]:
    """A browser that keeps what pages complain about and, if wanted, what they ask for."""
    from selenium import webdriver  # late: slow to import
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for option in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-sandbox"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", **({"performance": "ALL"} if requests else {})})
    browser = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
    try:
        yield browser
    finally:
        browser.quit()


def complaints(browser: webdriver.Chrome) -> list[str]:
    """What pages have written to the console since the last call."""
    return [each["message"] for each in browser.get_log("browser")]  # type: ignore[no-untyped-call]


def asked(browser: webdriver.Chrome) -> set[str]:
    """The addresses that pages have asked for since the last call."""
    log = browser.get_log("performance")  # type: ignore[no-untyped-call]
    events = [json.loads(each["message"])["message"] for each in log]
    return {each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"}
