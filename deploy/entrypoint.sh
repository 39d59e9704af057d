#!/bin/sh
# The first argument names the binary to run. Any other first argument is an argument of `verbatim`.
case "${1-}" in
*-worker | conversation-api | verbatim)
    exec "$@"
    ;;
*)
    exec verbatim "$@"
    ;;
esac
