#!/bin/sh
# Makes random passwords, and the files that docker-compose.yml hands to the services as secrets.
#
#   deploy/secrets.sh [DIRECTORY]      the default is deploy/secrets
#
# What is there already stays: servers keep the password that they were first started with.
set -eu
dir=${1:-$(dirname "$0")/secrets}

random() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

# Readable by the services' own users, whose numbers differ; the directory keeps everybody else out.
umask 022
mkdir -p "$dir"
chmod 700 "$dir"

make() {
    if [ ! -e "$dir/$1" ]; then
        printf '%s\n' "$2" >"$dir/$1"
        echo "made $dir/$1"
    fi
}

if [ ! -e "$dir/database_url" ]; then
    password=$(random)
    make postgres_password "$password"
    make database_url "postgres://verbatim:$(cat "$dir/postgres_password")@postgres:5432/verbatim"
fi
if [ ! -e "$dir/amqp_url" ]; then
    password=$(random)
    # The default limit of 50 MB is less than a burst writes between two looks at the disk. And a body
    # that no worker would save must not be larger than a worker.
    make rabbitmq.conf "default_user = verbatim
default_pass = $password
disk_free_limit.absolute = 2GB
max_message_size = 16777216"
    password=$(sed -n 's/^default_pass = //p' "$dir/rabbitmq.conf")
    make amqp_url "amqp://verbatim:$password@rabbitmq:5672/%2f"
fi
if [ ! -e "$dir/redis_url" ]; then
    password=$(random)
    make redis.conf "requirepass $password"
    password=$(sed -n 's/^requirepass //p' "$dir/redis.conf")
    make redis_url "redis://:$password@redis:6379/0"
fi
