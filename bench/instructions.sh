#!/bin/sh
# Counts the instructions that a worker spends on a packet, by kind of packet and stage, and fails where they are more than
# bench/instructions.txt allows: `sh bench/instructions.sh [--write] [MIX]...`. Needs valgrind. A count depends on code and
# compiler alone, so no quiet machine is needed. It cannot see stalls: measure time, too.
set -eu
cd "$(dirname "$0")/.."
cargo build --release --locked -q -p ringwall-bench-memory
exec "${CARGO_TARGET_DIR:-target}/release/ringwall-instructions" bench/instructions.txt "$@"
