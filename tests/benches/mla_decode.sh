#!/bin/sh
# Operations of one decoding step of DeepSeek-V3's attention with 4,096 tokens in all, by the two plans in one library: absorbed, which runs for
# few new tokens, and expanded, which runs for many. The bar is a quarter. Needs a release build.
set -eu
cd "$(dirname "$0")/../.."
"${LODE:-target/release/lode}" explain tests/benches/mla_decode.lode --dims B=1,T=1,S=4095 |
  awk '/^plan forward@/ { absorbed = $3 } /^plan forward:/ { expanded = $3 } /^plan / { print }
    END { printf "absorbed over expanded: %.3f (bar 0.25)\n", absorbed / expanded }'
