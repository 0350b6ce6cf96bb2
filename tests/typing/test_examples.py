"""The examples of README.md and docs/ as mypy (strict) understands them: what a reader copies has types that hold."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.pages import blocks

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the tests run apart from the clone")


def written(page: Path, folder: Path, version: int) -> list[Path]:
    """What the page has its reader write by then: of a file that is written again, that *version*, else its last one."""
    texts: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for block in blocks(page):
        if block.language == "python":
            name = block.file or f"at_line_{block.line}.py"
            if seen[name] <= version:
                texts[name] = block.text
            seen[name] += 1
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return [folder / name for name in texts]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_of_a_page_have_types_that_hold(page: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("mypy")
    again = Counter(block.file for block in blocks(page) if block.language == "python" and block.file)
    for version in range(max(again.values(), default=1)):
        files = written(page, tmp_path / str(version), version)
        if files:
            command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--ignore-missing-imports", f"--cache-dir={tmp_path_factory.getbasetemp() / 'mypy'}", *map(str, files)]
            done = subprocess.run(command, cwd=files[0].parent, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
