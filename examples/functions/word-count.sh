#!/bin/sh
# Counts what is in a text.
#
# Protocol exec, format raw. Takes any text. Gives JSON: {"lines": 1, "words": 2, "bytes": 12}.
set -eu

counts=$(wc)
# Split into lines, words and bytes, which is the order that POSIX fixes.
# shellcheck disable=SC2086
set -- $counts
printf '{"lines": %d, "words": %d, "bytes": %d}\n' "$1" "$2" "$3"
