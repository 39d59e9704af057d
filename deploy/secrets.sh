#!/bin/sh
# Makes random passwords, and the secret files that docker-compose.yml mounts into the services.
#
#   deploy/secrets.sh [DIRECTORY]      the default is deploy/secrets
#
# Existing files are kept: a server keeps the password of its first start.
set -eu
dir=${1:-$(dirname "$0")/secrets}

random() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

# The files are readable for the services' users, whose ids differ; the mode of the directory excludes other users.
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
if [ ! -e "$dir/api_database_url" ]; then
    make api_database_url "postgres://verbatim_api:$(random)@postgres:5432/verbatim"
fi
if [ ! -e "$dir/api_operator_database_url" ]; then
    make api_operator_database_url "postgres://verbatim_api_operator:$(random)@postgres:5432/verbatim"
fi
if [ ! -e "$dir/api_secret" ]; then
    make api_secret "$(random)"
fi
if [ ! -e "$dir/amqp_url" ]; then
    password=$(random)
    # disk_free_limit: a burst writes more than the default of 50 MB between two checks of the disk.
    # max_message_size: the default of RabbitMQ 4. The memory limit of the dead-letter-worker counts with it.
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
