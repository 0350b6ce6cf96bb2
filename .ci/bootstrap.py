"""Set up .venv for `make`: environment, driver, compiled loop. Needs only the standard library; safe to repeat.

    .ci/bootstrap EXTRA...        e.g. embedded dev

Four steps, each of which says what it chose and why: packages of the system (only as root with apt, only what is
missing), the virtual environment, the dependencies with psycopg's C half or its wheel, and this project in editable
form. What cannot be had is said loudly and done without, where the program runs without it.
"""

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FASTPATH = ROOT / "_fastpath"
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
INSTALLED = VENV / ".installed"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

C_PROGRAM = {  # the least that proves header and linker
    "compiler": "int main(void) { return 0; }",
    "Python.h": "#include <Python.h>\nint main(void) { return 0; }",
    "libpq-fe.h": "#include <libpq-fe.h>\nint main(void) { return PQlibVersion() == 0; }",
}
APT_PACKAGES = {
    "compiler": ("gcc", "libc6-dev"),
    "libpq-fe.h": ("libpq-dev",),
}


def main(extras: list[str]) -> None:
    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)      # two terminals, one .venv
        set_up(extras)


def set_up(extras: list[str]) -> None:
    unknown = sorted(set(extras) - set(PROJECT["project"]["optional-dependencies"]))
    if unknown:
        stop(f"no such extra in pyproject.toml: {', '.join(unknown)}")
    missing = missing_tools()
    if missing:
        missing = install_system_packages(missing)
    make_environment()
    install_requirements(extras, missing)
    install_project(missing)


# -- packages of the system ------------------------------------------------------------------------------------------

def missing_tools() -> list[str]:
    """Return which of compiler, Python.h and libpq-fe.h are not there, found by compiling three tiny programs."""
    return [name for name in C_PROGRAM if not compiles(name)]


def compiles(name: str) -> bool:
    if (compiler := find_compiler()) is None:
        return False
    flags = {
        "compiler": [],
        "Python.h": [f"-I{sysconfig.get_path('include')}", f"-I{sysconfig.get_path('platinclude')}"],
        "libpq-fe.h": libpq_flags(),
    }[name]
    if flags is None:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.c")
        source.write_text(C_PROGRAM[name])
        command = [compiler, str(source), "-o", str(source.with_suffix("")), *flags]
        return subprocess.run(command, capture_output=True).returncode == 0


@functools.cache
def find_compiler() -> str | None:
    """Return the compiler that builds will use: $CC, the one Python was built with, or another that is here."""
    built_with = (sysconfig.get_config_var("CC") or "cc").split()[0]
    for name in ((os.environ.get("CC") or built_with).split()[0], "cc", "gcc", "clang"):
        if shutil.which(name):
            if name != built_with:
                os.environ["CC"] = name    # for pip's builds too
            return name
    return None


def libpq_flags() -> list[str] | None:
    """Return the compiler's flags for libpq, or None without pg_config, which the build of psycopg[c] asks too."""
    if shutil.which("pg_config") is None:
        return None
    include, lib = (run_quietly("pg_config", option) for option in ("--includedir", "--libdir"))
    return [f"-I{include}", f"-L{lib}", "-lpq"]


def install_system_packages(missing: list[str]) -> list[str]:
    """Install what is missing where we are root and have apt; return what is missing afterwards."""
    if not can_apt():
        return missing
    wanted = [package for name in missing for package in APT_PACKAGES.get(name, python_headers())]
    if apt_install(wanted):
        find_compiler.cache_clear()
        return missing_tools()
    return missing


def python_headers() -> tuple[str, ...]:
    """Return the package with Python.h, if this interpreter is the system's (another one brings its own headers)."""
    is_system = Path(sys.base_prefix) == Path("/usr")
    return (f"python3.{sys.version_info.minor}-dev",) if is_system else ()


def can_apt() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(packages: list[str]) -> bool:
    """Install *packages*, unattended; return whether it worked."""
    if not packages:
        return False
    say(f"as root with apt: installing {' '.join(packages)}")
    done = apt_update() and apt("install", "--no-install-recommends", *packages)
    if not done:
        warn(f"apt could not install {' '.join(packages)}; going on without")
    return done


@functools.cache
def apt_update() -> bool:
    return apt("update")


def apt(*arguments: str) -> bool:
    """Run apt-get without questions; its many lines are shown only if it fails."""
    command = ["apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=300", *arguments]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        print(done.stdout[-2000:], file=sys.stderr)
    return done.returncode == 0


# -- the environment -------------------------------------------------------------------------------------------------

def make_environment() -> None:
    """Make .venv with pip in it, unless a working one of this Python version is there."""
    if environment_works():
        return
    shutil.rmtree(VENV, ignore_errors=True)
    for name, command in environment_makers():
        say(f"making .venv with Python {sys.version.split()[0]} and {name}")
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0 and environment_works():
            return
        warn(f"{name} failed")
        shutil.rmtree(VENV, ignore_errors=True)
    stop(f"cannot make a virtual environment: this Python has no ensurepip, and neither virtualenv nor uv is there.\n"
         f"Type:  sudo apt-get install python3.{sys.version_info.minor}-venv     (or install uv), then the same make again")


def environment_works() -> bool:
    probe = "import sys, pip; print(sys.version_info[:2])"
    try:
        return run_quietly(str(VENV_PYTHON), "-c", probe) == str(sys.version_info[:2])
    except (OSError, subprocess.CalledProcessError):
        return False


def environment_makers():
    """Yield (name, command) of each way to make .venv that this machine has, in the order to try."""
    python = sys.executable
    if has_module("ensurepip"):
        yield "venv", [python, "-m", "venv", str(VENV)]
    if has_module("virtualenv"):
        yield "virtualenv", [python, "-m", "virtualenv", "-q", "-p", python, str(VENV)]
    elif shutil.which("virtualenv"):
        yield "virtualenv", ["virtualenv", "-q", "-p", python, str(VENV)]
    if shutil.which("uv"):
        yield "uv", ["uv", "venv", "-q", "--seed", "--python", python, str(VENV)]
    if can_apt() and apt_install([f"python3.{sys.version_info.minor}-venv"]):
        yield "venv", [python, "-m", "venv", str(VENV)]


def has_module(name: str) -> bool:
    """Tell whether a fresh interpreter can import *name* (Debian cuts ensurepip out of the standard library)."""
    return subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode == 0


# -- dependencies and the project ------------------------------------------------------------------------------------

def install_requirements(extras: list[str], missing: list[str]) -> None:
    """Install the build's and the project's requirements; psycopg with its C half where that can be built."""
    project = PROJECT["project"]
    wanted = [*PROJECT["build-system"]["requires"], *project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    if not missing:
        say("taking psycopg[c]: a compiler, Python.h and libpq's headers are here")
        if pip("install", *wanted, *project["optional-dependencies"]["c"]):
            return
        warn("psycopg[c] could not be built; taking psycopg[binary]")
    else:
        say(f"taking psycopg[binary]: missing for psycopg[c]: {', '.join(missing)} (Debian: gcc libc6-dev python3-dev libpq-dev)")
    if not pip("install", *wanted, *project["optional-dependencies"]["binary"]):
        stop("pip could not install the dependencies; its messages stand above")


def install_project(missing: list[str]) -> None:
    """Install this clone in editable form, which compiles the loop in place, and say what came of it."""
    if is_installed():
        return
    began_at = time.time()
    if not pip("install", "--no-build-isolation", "--no-deps", "--editable", str(ROOT)):
        stop("pip could not install this project; its messages stand above")
    uncompiled = [name for name in fastpath_modules() if not was_compiled(name, began_at)]
    if uncompiled:
        reason = f"missing: {', '.join(missing)}" if missing else "see: .venv/bin/python setup.py build_ext --inplace"
        warn(f"_fastpath runs UNCOMPILED, several times slower ({', '.join(uncompiled)}; {reason})")
    else:
        INSTALLED.touch()


def is_installed() -> bool:
    """Tell whether this clone was installed, compiled, after its last change: a further extra needs no new build."""
    inputs = [ROOT / "pyproject.toml", ROOT / "setup.py", *FASTPATH.glob("*.p*")]
    if not INSTALLED.exists() or not all(module_path(name).exists() for name in fastpath_modules()):
        return False
    return INSTALLED.stat().st_mtime > max(path.stat().st_mtime for path in inputs)


def was_compiled(name: str, began_at: float) -> bool:
    """Tell whether the build made this module; one of an earlier build, which no longer succeeds, must not live on."""
    module = module_path(name)
    if not module.exists():
        return False
    if module.stat().st_mtime < began_at - 1:      # a file system may keep whole seconds
        module.unlink()
        return False
    return True


def module_path(name: str) -> Path:
    return FASTPATH / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"


def fastpath_modules() -> list[str]:
    """Return the names that setup.py compiles: every source there with declarations beside it."""
    return sorted(path.stem for path in FASTPATH.glob("*.pxd"))


def pip(*arguments: str) -> bool:
    command = [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments, "-qq"]
    return subprocess.run(command, cwd=ROOT).returncode == 0


# -- talk ------------------------------------------------------------------------------------------------------------

def run_quietly(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def say(text: str) -> None:
    print(f"bootstrap: {text}", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    print(f"bootstrap: WARNING: {text}", file=sys.stderr, flush=True)


def stop(text: str) -> None:
    sys.exit(f"bootstrap: {text}")


if __name__ == "__main__":
    main(sys.argv[1:])
