# The commands of guestwire. CONTRIBUTING.md says what each is for.
.PHONY: setup check demo test bench plugins soak node node-shell

setup:
	@tests/setup

# What every commit passes: form, lints, licences, unit tests. Needs root, but no network and no node VM.
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo deny --log-level error check bans licenses sources
	cargo nextest run --workspace --exclude e2e

# Two VMs on a VLAN, with names, told in the commands a person would type.
demo: setup
	@tests/demo/run

# Everything, rung by rung, with a count at the end.
test: setup
	@tests/run-all

# The plugins of the bridge family as they are shipped: static, and small in memory.
plugins: setup
	cni-bridge/plugins

# Ours beside the peers, in one run: the machine is noisy, the ratios are not.
bench: setup
	cargo build --release --workspace --bins
	$(MAKE) plugins
	cargo bench --package e2e --package macpool --package secondary-dns --benches
	tests/node/run --bench
	secondary-dns/benches/peers
	vhost-net-backend/benches/run

# 10^9 numbered frames from guest to guest, or COUNT of them; every test run sends some thousands.
soak:
	GUESTWIRE_SOAK_PACKETS=$(or $(COUNT),1000000000) cargo test --release --package vhost-net-backend --lib -- --nocapture soak

# The tests of the node VM; TEST=part-of-a-name picks some.
node:
	@tests/node/run $(TEST)

node-shell:
	@tests/node/boot --shell
