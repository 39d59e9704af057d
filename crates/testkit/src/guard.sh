# Waits until its owner closes standard input or dies, then ends every process that has the owner's mark and
# removes the owner's directory.
# Arguments: the mark (NAME=value, an environment entry), the directory.
trap '' HUP INT TERM
while read -r _; do :; done

marked() {
    grep -lsxzF -- "$1" /proc/[0-9]*/environ | cut -d/ -f3
}

round=0
while pids=$(marked "$1") && [ -n "$pids" ]; do
    for pid in $pids; do
        name=
        { read -r name </proc/"$pid"/comm; } 2>/dev/null
        # PostgreSQL gets SIGQUIT first: killed, it would leave its shared memory behind. Stopped children
        # need SIGCONT to react. After 60 rounds of 50 ms it is killed.
        if [ "$name" = postgres ] && [ "$round" -lt 60 ]; then
            { read -r children </proc/"$pid"/task/"$pid"/children; } 2>/dev/null
            [ "$round" -eq 0 ] && kill -QUIT "$pid" 2>/dev/null
            # shellcheck disable=SC2086 # a list of numbers
            kill -CONT "$pid" $children 2>/dev/null
        else
            kill -KILL "$pid" 2>/dev/null
        fi
    done
    round=$((round + 1))
    sleep 0.05
done

# Remove the shared memory of a killed PostgreSQL: line 7 of its pid file begins with the key.
for file in "$2"/*/data/postmaster.pid; do
    [ -f "$file" ] && ipcrm -M "$(sed -n '7s/^ *\([0-9]*\).*/\1/p' "$file")" 2>/dev/null
done

for _ in 1 2 3 4 5; do
    rm -rf -- "$2" 2>/dev/null && break
    sleep 0.2
done
