#!/bin/bash
# Requests /livez or /readyz of the process in this container: `healthcheck livez` (the default) or
# `healthcheck readyz`. Exit code 0 after status 200; otherwise the response is printed and the exit code is 1.
# Uses Bash's /dev/tcp, so the image needs no HTTP client.
page=${1:-livez}
listen=${VERBATIM_LISTEN:-0.0.0.0:9464}
port=${listen##*:}

# A process that closes the connection early must not end this script with SIGPIPE.
trap '' PIPE
exec 3<>"/dev/tcp/127.0.0.1/$port" || exit 1
printf 'GET /%s HTTP/1.0\r\nhost: localhost\r\n\r\n' "$page" >&3 || exit 1
IFS=' ' read -r _ status _ <&3
[ "$status" = 200 ] && exit 0
cat <&3
exit 1
