"""The compiled half of the distribution: the loop and its leaves. Everything else is in pyproject.toml.

The extensions are optional. Without Cython, a C compiler or Python.h the build goes on without them, says so, and
`supervisor._fastpath` runs uncompiled: the same program, slower.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

# By way of the link, so that Cython sees the package name and an sdist (which holds files, not links) builds the same.
FASTPATH = Path("supervisor/_fastpath")
SOURCES = {"wire": FASTPATH / "wire.pyx", "loop": FASTPATH / "loop.py"}
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
    found = cythonize(found, language_level=3)
    for extension in found:
        extension.optional = True      # what was not built is not missed when files are copied in place
    return found


def say_uncompiled(why):
    print(f"pgsupervisor: WARNING: the loop will run UNCOMPILED, several times slower ({why})", file=sys.stderr)


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildWhatCompiles},
    options={"build_ext": {"parallel": len(SOURCES)}},
)
