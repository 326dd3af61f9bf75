# Forwards the daily targets; the scripts do the work.
.PHONY: setup test demo lint bench

setup:
	script/setup

test:
	script/test

demo:
	script/demo

lint: setup
	.venv/bin/ruff format --check src tests bench
	.venv/bin/ruff check src tests bench
	.venv/bin/mypy src tests bench
	.venv/bin/lint-imports

bench: setup
	.venv/bin/python -m bench.migration 30
