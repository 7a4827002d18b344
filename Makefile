# The README's commands: `make demo` and `make test`. Both begin with `make setup`.
CARGO ?= cargo
.PHONY: help setup build demo test lint bench

help:
	@echo "make demo   train the digits at 1, 2, 4, 8 and 32 bits on two local workers"
	@echo "make test   every test"
	@echo "make lint   formatting and clippy, warnings denied"
	@echo "make bench  the joint step against plain PyTorch, in turn (needs a Python with torch)"
	@echo "make setup  fetch libtorch if none is there (the others do this themselves)"

setup:
	@sh deploy/setup.sh

build: setup
	$(CARGO) build --release --locked

demo: build
	target/release/anybit run presets/digits.toml --workers 2 --report target/demo.json

# Release mode: the same artifacts as the demo, and tests that train.
test: build
	$(CARGO) test --release --locked --workspace

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- --deny warnings

bench: build
	python3 bench/compare.py
