#!/bin/sh
# The first argument names the binary; anything else is for the command line tool.
case "${1-}" in
message-save-worker | persistence-migration-worker | statistics-worker | verbatim)
    exec "$@"
    ;;
*)
    exec verbatim "$@"
    ;;
esac
