"""The compiled half of the distribution: the loop and its leaves. Everything else is in pyproject.toml.

The extensions are optional. Without Cython, a C compiler or Python.h the build goes on without them, says so, and
`supervisor._fastpath` runs uncompiled: the same program, slower.
"""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

# By way of the link, so that Cython sees the package name and an sdist (which holds files, not links) builds the same.
FASTPATH = Path("supervisor/_fastpath")
SOURCES = {"wire": FASTPATH / "wire.pyx", "loop": FASTPATH / "loop.py"}
# Read by the interpreter at its start, where site-packages are; see the file itself. As a data file it is in editable installs too.
STARTUP = (os.path.relpath(sysconfig.get_path("purelib"), sysconfig.get_path("data")), ["supervisor/cli/pgsupervisor.pth"])
CFLAGS = [
    "-O3",
    "-g",                       # profilers map native frames to .pyx lines by debug information; never stripped
    "-fno-omit-frame-pointer",  # cheap, and perf can walk the stack
]


class BuildWhatCompiles(build_ext):
    """Builds each extension or goes on without it (`optional=True` of an Extension forgives no missing compiler)."""

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError, OSError) as error:
            say_uncompiled(f"{ext.name} did not compile: {error}")


class HasData(Distribution):
    """Editable installs ask `has_data()` whether there are data files, and a Distribution only answers `has_data_files()`."""

    has_data = Distribution.has_data_files


def extensions():
    """Return the extensions to build: those whose source exists, or none without Cython."""
    found = [
        Extension(f"supervisor._fastpath.{name}", [str(path)], extra_compile_args=CFLAGS)
        for name, path in SOURCES.items()
        if path.exists()
    ]
    try:
        from Cython.Build import cythonize
    except ImportError as error:
        say_uncompiled(f"no Cython: {error}")
        return []
    # line numbers of the sources in the debug information: profilers and debuggers name loop.py and wire.pyx without the generated C
    found = cythonize(found, language_level=3, emit_linenums=True)
    for extension in found:
        extension.optional = True      # what was not built is not missed when files are copied in place
    return found


def say_uncompiled(why):
    print(f"pgsupervisor: WARNING: the loop will run UNCOMPILED, several times slower ({why})", file=sys.stderr)


setup(
    distclass=HasData,
    ext_modules=extensions(),
    data_files=[STARTUP],
    cmdclass={"build_ext": BuildWhatCompiles},
    options={"build_ext": {"parallel": len(SOURCES)}},
)
