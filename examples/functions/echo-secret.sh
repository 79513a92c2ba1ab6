#!/bin/sh
# Gives its secret away: for proving that the gateway keeps it out of logs and records.
#
# Protocol exec, format raw. Writes the environment variable SECRET as its result, and again to its log.
# Without the secret it says so and ends with exit status 1.
set -eu

cat >/dev/null
if [ -z "${SECRET:-}" ]; then
    echo 'the secret SECRET is missing' >&2
    exit 1
fi
echo "the secret is $SECRET" >&2
printf '%s' "$SECRET"
