"""A headless Chromium that talks to loopback alone."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
DESKTOP = (1440, 1250)
PHONE = (390, 844)


def why_missing() -> str | None:
    """What keeps a browser from being started here; None when nothing does."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if not missing:
        return None
    return f"no {' and no '.join(missing)} here (Debian: apt install chromium chromium-driver)"


@contextlib.contextmanager
def browser(
    size: tuple[int, int] = DESKTOP, scale: float = 1.0, dark: bool = False
) -> Iterator[Chrome]:
    """One window with a profile of its own; phones are emulated with touch."""
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile:
        options = ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = Chrome(options, ChromeService(str(shutil.which("chromedriver"))))
        try:
            metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": scale}
            metrics["mobile"] = size[0] < 600
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            yield driver
        finally:
            driver.quit()
