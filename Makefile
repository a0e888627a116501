# ringwall: what a person types. Everything is built as the calling user; root is used for the runs alone.
SHELL := /bin/bash
.DEFAULT_GOAL := help
RECIPES ?=
# More arguments of `ringwall-bench suite`, such as --even-if-busy.
BENCH ?=

.PHONY: help
help:
	@echo 'ringwall: a Kubernetes NetworkPolicy firewall with an AF_XDP dataplane'
	@echo
	@echo '  make demo                shows policy being enforced on real traffic (about two minutes after the build)'
	@echo '  make demo RECIPES=DIR    the same with your own folder of policies'
	@echo '  make test                runs every test, the end-to-end ones in network namespaces included'
	@echo '  make fuzz                fuzzes everything that reads what others wrote, a minute each (FUZZ_SECONDS=60)'
	@echo '  make bench               measures the data sheet, bench/REPORT.md, in under ten minutes after a release build'
	@echo '  make bench-full          the same with every length, 1M flows, 100k rules and more rounds; takes hours'
	@echo '  make lab-vm              sends the kernel'\''s pktgen through ringwall in virtual machines with other kernels'
	@echo '  make build               builds target/debug/ringwall'
	@echo '  make packages            installs the Debian packages that are missing, and nothing else'
	@echo '  make ci                  what the continuous integration runs'
	@echo
	@echo 'demo, test, fuzz and bench install what is missing and use root (sudo where needed) for the run alone.'

.PHONY: packages
packages:
	@.ci/packages

.PHONY: build
build: packages
	@echo '== build'
	cargo build --locked -p ringwall -p ringwall-cni -p ringwall-testbed

.PHONY: demo
demo: build
	@.ci/as-root "$${CARGO_TARGET_DIR:-target}/debug/ringwall-demo" $(if $(RECIPES),--recipes '$(RECIPES)')

.PHONY: test
test: packages
	@.ci/test

.PHONY: lab-vm
lab-vm: build
	@.ci/packages qemu-system-x86:qemu-system-x86_64 busybox-static:busybox kmod xz-utils:xz python3
	@cargo test --locked --no-run -p ringwall-testbed --test kernel_tunnels
	@.ci/as-root bench/lab/vm.py --binary "$${CARGO_TARGET_DIR:-target}/debug/ringwall" --test kernel_tunnels

.PHONY: fuzz
fuzz: packages
	@.ci/fuzz

.PHONY: bench
bench: packages
	@.ci/bench $(BENCH)

.PHONY: bench-full
bench-full: packages
	@.ci/bench --full $(BENCH)

.PHONY: ci
ci:
	@.ci/run
