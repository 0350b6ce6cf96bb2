"""`python -m supervisor`. Imports submodules only: another distribution may overwrite the package's `__init__.py`."""

from supervisor.cli.main import main

if __name__ == "__main__":
    main()
