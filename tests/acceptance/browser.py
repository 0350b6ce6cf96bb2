"""A browser for tests: Debian's chromium by its own chromedriver, spoken to in the protocol of W3C WebDriver. Nothing but the standard library."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.harness import eventually

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
ENTER = "\ue007"


def missing() -> str | None:
    """What of it this machine lacks; None where all is there."""
    lacks = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"not installed: {', '.join(lacks)} (Debian: apt-get install chromium chromium-driver)" if lacks else None


class Gone(Exception):
    """What WebDriver refuses: an element that is not there, or no more."""


class Browser:
    """One window."""

    def __init__(self, url: str, session: str) -> None:
        self._url, self._session = url, session

    def open(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    @property
    def url(self) -> str:
        return str(self._ask("GET", "/url"))

    def find(self, css: str) -> str:
        """The first element; waits for it."""
        return eventually(lambda: self._found(css), 30, f"{css} on {self.url}")

    def has(self, css: str) -> bool:
        return self._found(css) is not None

    def click(self, css: str) -> None:
        """Click it; again where a refresh took it away in that moment."""
        eventually(lambda: self._tried("POST", f"/element/{self.find(css)}/click", {}), 30, f"a click on {css}")

    def drag(self, css: str, begin: float, end: float) -> None:
        """Press in *css*, at a part of its width, move to another and let go."""
        left, top, width, height = self.run("const b = document.querySelector(arguments[0]).getBoundingClientRect(); return [b.left, b.top, b.width, b.height]", css)
        places = [{"type": "pointerMove", "duration": 0, "x": round(left + width * part), "y": round(top + height / 2)} for part in (begin, (begin + end) / 2, end)]
        moves = [places[0], {"type": "pointerDown", "button": 0}, *places[1:], {"type": "pointerUp", "button": 0}]
        self._ask("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": moves}]})

    def press(self, key: str) -> None:
        """A key, wherever the keyboard goes."""
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]}]})

    def write(self, css: str, text: str) -> None:
        eventually(lambda: self._tried("POST", f"/element/{self.find(css)}/value", {"text": text}), 30, f"text in {css}")

    def text(self, css: str = "body") -> str:
        return str(self.run("const e = document.querySelector(arguments[0]); return e ? e.innerText : ''", css))

    def until(self, css: str, words: str, within_s: float = 30.0) -> None:
        """Wait until the text of *css* has *words* in it."""
        eventually(lambda: words in self.text(css), within_s, f"{words!r} in {css}: {self.text(css)[:500]!r}")

    def run(self, script: str, *values: Any) -> Any:
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(values)})

    def run_async(self, script: str, *values: Any) -> Any:
        """The same for a script that awaits something."""
        whole = f"const done = arguments[arguments.length - 1]; (async function () {{ {script} }}).apply(null, arguments).then(done, error => done('failed: ' + error))"
        return self._ask("POST", "/execute/async", {"script": whole, "args": list(values)})

    def size(self, width: int, height: int) -> None:
        self._ask("POST", "/window/rect", {"width": width, "height": height})

    def dark(self, on: bool) -> None:
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if on else "light"}])

    def devtools(self, command: str, **values: Any) -> Any:
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": values})

    def screenshot(self, path: Path, *, whole: bool = True) -> Path:
        """The page as PNG, all of its length or what is in the window."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if whole:
            size = self.run("return [document.documentElement.clientWidth, Math.min(document.documentElement.scrollHeight, 6000)]")
            clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
            data = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        else:
            data = self._ask("GET", "/screenshot")
        path.write_bytes(base64.b64decode(data))
        return path

    def complaints(self) -> list[str]:
        """What the browser's console says: violations of the content security policy, errors of scripts, failed requests."""
        return [str(entry["message"]) for entry in self._ask("POST", "/se/log", {"type": "browser"}) if entry["level"] in ("SEVERE", "WARNING")]

    def asked(self) -> list[str]:
        """What was asked of anybody since the last time, by whatever: where the browser was made with *network*."""
        said = [json.loads(entry["message"])["message"] for entry in self._ask("POST", "/se/log", {"type": "performance"})]
        return [str(each["params"]["request"]["url"]) for each in said if each["method"] == "Network.requestWillBeSent"]

    def _found(self, css: str) -> str | None:
        try:
            return str(self._ask("POST", "/element", {"using": "css selector", "value": css})[ELEMENT])
        except Gone:
            return None

    def _tried(self, *asked: Any) -> bool:
        try:
            self._ask(*asked)
        except Gone:
            return False
        return True

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        return ask(self._url, method, f"/session/{self._session}{path}", body)


def ask(url: str, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())["value"]
    except urllib.error.HTTPError as error:
        said = json.loads(error.read())["value"]
        raise Gone(f"{said['error']}: {said['message'].splitlines()[0]}") from None


@contextmanager
def browser(folder: Path, width: int = 1280, height: int = 900, *, network: bool = False) -> Iterator[Browser]:
    """A fresh profile in *folder*; all of it ends with the block. *network*: keep what it asks for."""
    log = folder / "chromedriver.log"
    arguments = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--password-store=basic", "--no-proxy-server", "--hide-scrollbars",
    ]  # fmt: skip
    with log.open("wb") as out:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=out)
    try:
        url = f"http://127.0.0.1:{_port_of(driver)}"
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": arguments, "binary": shutil.which("chromium")}, "goog:loggingPrefs": {"browser": "ALL", **({"performance": "ALL"} if network else {})}}}}
        session = ask(url, "POST", "/session", wanted)["sessionId"]
        try:
            yield Browser(url, session)
        finally:
            ask(url, "DELETE", f"/session/{session}")
    finally:
        driver.terminate()
        driver.wait(20)


def _port_of(driver: subprocess.Popen[bytes]) -> int:
    assert driver.stdout is not None
    for line in driver.stdout:
        if b"started successfully on port" in line:
            return int(line.rsplit(b" ", 1)[1].strip(b".\n "))
    raise AssertionError("chromedriver did not start")
