"""Take a picture of a training run in TensorBoard, as the one in docs/training.md.

    pip install ".[track,dev]"
    llada train pretrain … --output_dir runs/my-text --report_to tensorboard
    python examples/tensorboard_picture.py runs/my-text tensorboard.png

Needs Chromium: the one on the path, or Playwright's (`playwright install chromium`).
"""

import argparse
import io
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import sync_playwright

# TensorBoard shows the metrics whose names match.
METRICS = "^train/(loss|masked_accuracy|tokens_per_second)$|^eval/loss$"
SIZE = {"width": 1180, "height": 1040}
# Colours of the picture; a palette is a quarter of the file.
NUM_COLORS = 48
PATIENCE = 300  # seconds


def main() -> None:
    """Start TensorBoard on a run's log, open its page, and write what it shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run with --report_to tensorboard")
    parser.add_argument("picture", help="PNG file to write")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", options.run, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/")
        picture = take_picture(f"http://127.0.0.1:{port}/?darkMode=false&tagFilter={quote(METRICS)}#timeseries")
    finally:
        server.terminate()
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(NUM_COLORS).save(options.picture, optimize=True)
    print(f"Picture: {options.picture}")


def wait_for(address: str) -> None:
    """Wait until a server answers.

    Raises:
        TimeoutError: after `PATIENCE` seconds.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"TensorBoard did not answer within {PATIENCE} seconds; start it by hand to see why.")


def take_picture(address: str) -> bytes:
    """Open a page and return it as PNG, once its charts are drawn."""
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        page.wait_for_selector("scalar-card line-chart")
        page.locator("button.settings-button").click()  # closes the pane, which is open at first
        page.wait_for_timeout(5000)  # for the lines
        picture = page.screenshot()
        browser.close()
    return picture


if __name__ == "__main__":
    main()
