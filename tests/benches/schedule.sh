#!/bin/sh
# How long 4,096 ranks take to be planned, proved and simulated action by action, and one pipeline of 128 ranks.
set -eu
cd "$(dirname "$0")/../.."
cargo build --release -q -p schedule --example scale
target/release/examples/scale
target/release/examples/scale 128 512 1
