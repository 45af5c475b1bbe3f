"""A headless Chromium of the system, driven by Selenium."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS, DRIVER = ("chromium", "chromium-browser", "google-chrome"), "chromedriver"


def missing() -> str | None:
    """Why no browser can be used here; None if one can."""
    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed: pip install multilora[test]"
    if not any(map(shutil.which, BROWSERS)) or shutil.which(DRIVER) is None:
        return "no Chromium with chromedriver: apt-get install chromium chromium-driver"
    return None


@contextmanager
def opened(page: Path, *, width: int = 1200, dark: bool = False, downloads: Path | None = None) -> Iterator[Any]:
    """Open a page and wait until its charts are drawn."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(next(filter(None, map(shutil.which, BROWSERS))))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which(DRIVER))))
    try:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        if downloads is not None:
            behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
            driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        driver.get(page.resolve().as_uri())
        wait_for(lambda: driver.execute_script("return document.documentElement.dataset.drawn === 'yes'"))
        yield driver
    finally:
        driver.quit()


def wait_for(condition: Any, seconds: float = 60.0) -> Any:
    """Wait until a condition returns something true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
    return value
