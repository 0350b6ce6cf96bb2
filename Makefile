# make demo, make test: each does all its own set-up from a bare clone (Linux, Python >= 3.11, make).
#
# PYTHON=/path/to/python   the interpreter to build .venv with
# ARGS="..."               more arguments for demo, test (pytest) or bench
# ALL=1                    make test: a skipped test fails

.DEFAULT_GOAL := help
.PHONY: demo test bench fresh clean help anew
SHELL := /bin/sh

venv   := .venv/bin/python
inputs := .ci/bootstrap .ci/bootstrap.py pyproject.toml setup.py \
          $(wildcard _fastpath/*.py _fastpath/*.pyx _fastpath/*.pxd _fastpath/*.h)

export PYTHON
ifneq ($(PYTHON),)          # another interpreter than the one in .venv: set up anew
which_python := -c 'import sys; print(sys.version, sys.base_prefix)'
ifneq ($(shell $(PYTHON) $(which_python)),$(shell $(venv) $(which_python) 2>/dev/null))
inputs += anew
endif
endif

demo: .venv/.ready-demo     ## durable workflows over the .py files of Python's library and packages, killed and finished
	@$(venv) -m supervisor demo $(ARGS)

test: .venv/.ready-test     ## the whole suite, on a private PostgreSQL
	@$(if $(ALL),PGSUPERVISOR_TEST_ALL=1 )$(venv) -m $(if $(ARGS),pytest $(ARGS),tests)

bench: .venv/.ready-bench   ## benchmarks: make bench ARGS="steps --runs 50000"
	@$(venv) -m supervisor bench $(ARGS)

fresh:                      ## both commands in a minimal Debian, as root and as a user (needs root)
	@.ci/fresh

clean:                      ## stop the private PostgreSQL (its data stay) and remove what was built
	@if $(venv) -c 'import click, platformdirs, psycopg' 2>/dev/null; then $(venv) -m supervisor db stop; fi
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .hypothesis
	rm -f _fastpath/*.so _fastpath/*.c _fastpath/*.html
	find supervisor _fastpath sql bench tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:                       ## this list
	@awk -F ':[^#]*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile

# One environment; a richer set also has what the plainer ones need.
.venv/.ready-demo: $(inputs)
	@.ci/bootstrap embedded dashboard
	@touch $@
.venv/.ready-test: $(inputs)
	@.ci/bootstrap embedded dashboard dev
	@touch .venv/.ready-demo $@
.venv/.ready-bench: $(inputs)
	@.ci/bootstrap embedded bench
	@touch .venv/.ready-demo $@
