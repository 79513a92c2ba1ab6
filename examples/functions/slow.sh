#!/bin/sh
# Takes its time: for trying out timeouts and cancellation.
#
# Protocol exec, format raw. Takes a whole number of seconds, such as 2. Gives JSON when they are over: {"slept": 2}.
# Anything else is said on standard error, with exit status 1.
set -eu

seconds=$(cat)
case $seconds in
'' | *[!0-9]*)
    echo 'the payload has to be a whole number of seconds' >&2
    exit 1
    ;;
esac
sleep "$seconds"
printf '{"slept": %s}\n' "$seconds"
