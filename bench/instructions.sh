#!/bin/sh
# Counts the instructions that a worker spends on a packet (wire, IPv4, 1,000 flows) and fails where they are over 10 %
# more than bench/instructions.txt says. Needs valgrind. After a change that is worth it, write the new number there.
set -eu
cd "$(dirname "$0")/.."
test_binary=$(cargo test --release -q -p ringwall-dataplane --lib --no-run --message-format json |
    sed -n 's/.*"executable":"\([^"]*ringwall_dataplane-[^"]*\)".*/\1/p' | tail -n 1)
report=$(mktemp)
trap 'rm -f "$report"' EXIT
# The test runs in a thread of its own; only what lies within run_once is counted.
packets=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null '--toggle-collect=*Worker*::run_once*' \
    "$test_binary" --ignored --nocapture --test-threads 1 --exact worker::tests::figures::instructions 2>"$report" |
    sed -n 's/.*packets \([0-9]*\) drops 0$/\1/p')
collected=$(sed -n 's/.*Collected : \([0-9]*\).*/\1/p' "$report")
if [ -z "$packets" ] || [ -z "$collected" ] || [ "$collected" -eq 0 ]; then
    echo "instructions.sh: nothing was counted; valgrind says:" >&2
    cat "$report" >&2
    exit 1
fi
now=$((collected / packets))
limit=$(($(cat bench/instructions.txt) * 110 / 100))
echo "$now instructions/packet, at most $limit"
[ "$now" -le "$limit" ]
