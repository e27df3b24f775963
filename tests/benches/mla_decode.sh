#!/bin/sh
# Operations of one decoding step of DeepSeek-V3's attention with 4,096 tokens in all, by the two plans in one library: absorbed, which runs for
# few new tokens, and expanded, which runs for many. The bar is a quarter. Needs a release build.
set -eu
cd "$(dirname "$0")/../.."
"${LODE:-target/release/lode}" explain tests/benches/mla_decode.lode --dims B=1,T=1,S=4095 |
  awk 'BEGIN { unit["Kop,"] = 1e3; unit["Mop,"] = 1e6; unit["Gop,"] = 1e9 }
    /^forward/ { print } /^forward:/ { expanded = $6 * unit[$7] } /^forward@/ { absorbed = $6 * unit[$7] }
    END { if (!absorbed || !expanded) { print "no two plans in what explain says"; exit 1 }
      printf "absorbed over expanded: %.3f (bar 0.25)\n", absorbed / expanded; exit absorbed > expanded / 4 }'
