#!/bin/sh
# Fails, whatever it is given.
#
# Protocol exec, format raw. Says so on standard error and ends with exit status 3.
set -eu

cat >/dev/null
echo 'this function always fails' >&2
exit 3
