#!/bin/bash
# Asks the process in this container: `healthcheck livez` (the default) or `healthcheck readyz`.
# Exit code 0 means yes; else the answer is printed. Bash speaks TCP, so the image needs no HTTP client.
page=${1:-livez}
listen=${VERBATIM_LISTEN:-0.0.0.0:9464}
port=${listen##*:}

# A process that is just going away is an answer as well, not a signal.
trap '' PIPE
exec 3<>"/dev/tcp/127.0.0.1/$port" || exit 1
printf 'GET /%s HTTP/1.0\r\nhost: localhost\r\n\r\n' "$page" >&3 || exit 1
IFS=' ' read -r _ status _ <&3
[ "$status" = 200 ] && exit 0
cat <&3
exit 1
