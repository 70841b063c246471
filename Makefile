# make demo: set everything up and build a real spec. make test: set everything up and run the tests.

PYTHON ?= python3
STORE ?= qemu:$(CURDIR)/demo-store
OBUILD := .venv/bin/obuild

# What obuild calls, and what it takes to make base images; Debian's and Ubuntu's names.
PACKAGES := python3-venv qemu-system-x86 qemu-utils mmdebstrap debian-archive-keyring uidmap \
	grub-common grub-pc-bin e2fsprogs fdisk util-linux ca-certificates

# What `make test-arch` needs besides: QEMU for each architecture, and what looks into a foreign root from outside.
ARCHES ?= aarch64 s390x ppc64le riscv64
ARCH_PACKAGES := qemu-system-arm qemu-system-misc qemu-system-ppc cpio kmod openssh-client xz-utils

# What tests use: another tar, as FreeBSD and Windows have it, another shell, an assembler, and who reads scripts.
TEST_PACKAGES := libarchive-tools gpg gpgv busybox binutils shellcheck

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help setup demo test test-arch test-crash test-long bench-steps docs lint clean
help:
	@sed -n 's/^# make/make/p' Makefile

setup: .venv/packages .venv/python

.venv/packages: WANTED := $(PACKAGES)
.venv/packages-arch: WANTED := $(ARCH_PACKAGES)
.venv/packages-test: WANTED := $(TEST_PACKAGES)
.venv/packages .venv/packages-arch .venv/packages-test: Makefile
	@missing=$$(for package in $(WANTED); do \
	    dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; done); \
	if [ -n "$$missing" ]; then \
	    echo "installing" $$missing; \
	    $(SUDO) apt-get update -qq && \
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	fi
	@mkdir -p .venv && touch $@

.venv/python: pyproject.toml .venv/packages
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -e '.[dev]'
	.venv/bin/python -m compileall -q obuild
	@touch $@

demo: setup
	@echo '== make the base image debian-12 from Debian packages, once'
	$(OBUILD) base make debian-12 --store=$(STORE)
	@echo '== build specs/hello/hello.spec: install a compiler, copy the sources in, compile, run'
	$(OBUILD) build --store=$(STORE) -f specs/hello/hello.spec --qemu-memory 2 --qemu-cpus 2 specs/hello
	@echo '== the same again: everything is there, nothing boots'
	$(OBUILD) build --store=$(STORE) -f specs/hello/hello.spec --qemu-memory 2 --qemu-cpus 2 specs/hello
	@echo
	@echo 'Now change specs/hello/hello.c and run `make demo` again: only what changed is built.'
	@echo 'Or look around:  $(OBUILD) ls --store=$(STORE)'
	@echo '                 $(OBUILD) --help; the language is in docs/spec.md'

test: setup lint
	.venv/bin/pytest -q -n auto --maxprocesses 8 --dist worksteal

# make test-arch: the tests that boot guests, in those of other architectures, emulated; ARCHES=s390x for one of them.
test-arch: setup .venv/packages-arch
	@for arch in $(ARCHES); do \
	    echo "== $$arch"; .venv/bin/pytest -q -m 'arch and not crash and not long' -k "$$arch" tests/vm || exit 1; \
	done

# make test-long: warm and cold builds of a stock Debian give the same files; a boot for each step is as good.
test-long: setup
	.venv/bin/pytest -q -m long tests

# make test-crash: kill builds at every point and at random moments, with real guests; KILLS=20 for fewer than 200.
KILLS ?= 200
test-crash: setup
	OBUILD_TEST_KILLS=$(KILLS) .venv/bin/pytest -q -m 'crash and not arch' tests/vm/test_crashes.py

# make bench-steps: what builds take, cold and warm, and docs/steps.png; STEPS='--base micro --repeat 1' for less.
STEPS ?=
bench-steps: setup
	.venv/bin/pip install -q -e '.[bench]'
	.venv/bin/python -m bench.steps $(STEPS)

docs: setup
	.venv/bin/python -m obuild.cli.reference >docs/cli.md

lint: setup .venv/packages-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	shellcheck -s sh obuild/guests/resident/*.sh

clean:
	rm -rf demo-store .cache
