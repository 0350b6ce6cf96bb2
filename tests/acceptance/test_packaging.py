"""The distribution: whichever way it is installed, the same files run, from whichever folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from supervisor.core.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
LINKS = ("_fastpath", "sql", "bench")
STARTUP = "pgsupervisor.pth"
SHIPPED = {".py", ".pyi", ".pyx", ".pxd", ".sql", ".typed", ".jinja", ".js", ".css", ".svg", ".txt"}
PRINT_BUILD = "import supervisor._fastpath as fastpath, supervisor.sql; print(fastpath.build())"

pytestmark = pytest.mark.skipif(not (ROOT / "supervisor" / "sql").is_symlink(), reason="the tests run apart from a clone")


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of what a clone holds, its links kept, nothing built: building must not touch the folder under test."""
    copy = tmp_path_factory.mktemp("packaging") / "clone"
    built = shutil.ignore_patterns(".git", ".venv", "*.so", "*.c", "__pycache__", "*.egg-info", "build", "dist", ".*_cache")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=built)
    return copy


@pytest.fixture(scope="module")
def without_compiler():
    return os.environ | {"CC": "/bin/false"}


@pytest.fixture(scope="module")
def wheel(clone, without_compiler):
    """sdist → wheel, as a package index would hand it out, on a machine where no compiler works."""
    run(sys.executable, "-m", "build", "--no-isolation", clone, cwd="/", env=without_compiler)
    return next((clone / "dist").glob("*.whl"))


def site_packages():
    """Where this environment's libraries are, without its startup files: PYTHONPATH has none of those read."""
    import click

    return str(Path(click.__file__).resolve().parents[1])


def files_of(wheel):
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_links_are_links_in_the_clone(clone):
    for name in LINKS:
        assert os.readlink(clone / "supervisor" / name) == f"../{name}"


def test_sdist_and_wheel_hold_every_file_of_the_package(clone, wheel):
    """A forgotten .sql file shows up only at the user's first migration."""
    wanted = {
        str(Path(folder, name).relative_to(clone))
        for folder, _, names in os.walk(clone / "supervisor", followlinks=True)
        for name in names
        if Path(name).suffix in SHIPPED
    }
    assert wanted <= files_of(wheel)
    with tarfile.open(next((clone / "dist").glob("*.tar.gz"))) as sdist:
        assert wanted <= {name.partition("/")[2] for name in sdist.getnames()}


def test_wheel_of_the_clone_equals_the_wheel_of_the_sdist(clone, wheel, without_compiler, tmp_path):
    """`pip install .` and `pip install pgsupervisor` are the same program."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, clone, env=without_compiler)
    assert files_of(wheel) == files_of(next(tmp_path.glob("*.whl")))


def test_nothing_generic_lands_beside_the_package(wheel):
    """Top-level packages named sql or bench would shadow the user's own."""
    assert {"supervisor"} == {name.partition("/")[0] for name in files_of(wheel) if not name.endswith(f"/{STARTUP}")}


def test_without_a_compiler_it_builds_and_runs_uncompiled(wheel, tmp_path):
    """A machine without gcc gets the same program, slower, instead of an error in the middle of pip."""
    assert not [name for name in files_of(wheel) if name.endswith(".so")]
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path, wheel)
    assert "python\n" == run(sys.executable, "-c", PRINT_BUILD, cwd="/", env=os.environ | {"PYTHONPATH": str(tmp_path)}).stdout


def test_the_same_program_from_the_root_and_from_the_clone():
    """An editable install must not depend on the current folder."""
    commands = [(sys.executable, "-m", "supervisor"), (Path(sys.executable).with_name("pgsupervisor"),)]
    said = {run(*command, "--version", cwd=cwd).stdout for command in commands for cwd in ("/", ROOT)}
    assert 1 == len(said)
    builds = {run(sys.executable, "-c", PRINT_BUILD, cwd=cwd).stdout for cwd in ("/", ROOT)}
    assert 1 == len(builds)


@pytest.mark.parametrize("how", ["wheel", "editable"])
def test_a_file_named_supervisor_in_the_folder_is_named_and_not_run(how, clone, wheel, without_compiler, tmp_path):
    """Whoever keeps a supervisor.py must not have it run by `python -m supervisor`, nor wonder where the program went."""
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", venv)
    what = [wheel] if how == "wheel" else ["-e", clone]
    run(sys.executable, "-m", "pip", f"--python={venv}", "install", "-q", "--no-deps", "--no-build-isolation", "--ignore-installed", *what, env=without_compiler | {"PYTHONPATH": site_packages()})
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "supervisor.py").write_text("print('the file in the folder ran')")
    paths = os.environ | {"PYTHONPATH": site_packages()}  # what the program needs, of the environment under test
    said = {}
    for command in ([venv / "bin" / "python", "-m", "supervisor"], [venv / "bin" / "pgsupervisor"]):
        done = run(*command, "--version", cwd=mine, env=paths)
        assert f"{mine}/supervisor.py hides pgsupervisor" in done.stderr
        said[command[0].name] = done.stdout
        assert "hides" not in run(*command, "--version", cwd=clone, env=paths).stderr  # whoever has just installed it is there, and has nothing to rename
    assert said["python"] == said["pgsupervisor"] and "pgsupervisor" in said["python"]
    assert "the file in the folder ran\n" == run(venv / "bin" / "python", "supervisor.py", cwd=mine, env=paths).stdout


def test_versions_agree():
    assert VERSION == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
