#!/bin/sh
# Serves the demo model on http://127.0.0.1:${PORT:-8080} until Ctrl-C.
# State lies under $B/run and is gone at the end.  WAIT: seconds that a start may take
# (60), but for the engine's loading of its model.
set -eu

B=${B-build}
PORT=${PORT-8080}
MODEL=${MODEL-models/demo}
WAIT=${WAIT-60}

case $PORT in
    ''|*[!0-9]*) echo "PORT must be a number, not \"$PORT\"" >&2; exit 2 ;;
esac
if [ "$PORT" -lt 1 ] || [ "$PORT" -gt 65535 ]; then
    echo "PORT must be 1 to 65535, not $PORT" >&2
    exit 2
fi

case $WAIT in
    ''|*[!0-9]*) echo "WAIT must be a number of seconds, not \"$WAIT\"" >&2; exit 2 ;;
esac

mkdir -p "$B"
B=$(cd "$B" && pwd)
run=$B/run-$PORT
[ "$PORT" != 8080 ] || run=$B/run
nginx=$(PATH=$PATH:/usr/sbin:/sbin command -v nginx) || { echo "nginx is not installed" >&2; exit 1; }

exec 9>"$run.lock"
flock -n 9 || { echo "already running: $run is in use" >&2; exit 1; }
if perl -MIO::Socket::INET -e 'exit !IO::Socket::INET->new(PeerAddr => "127.0.0.1:$ARGV[0]", Timeout => 2)' "$PORT"
then
    rm -f "$run.lock"
    echo "port $PORT is in use; PORT=8081 make run takes another" >&2
    exit 1
fi

mkdir -p "$run"
short=
engine_pid=
nginx_pid=

# A socket's path holds 107 bytes; a longer one moves to a directory of its own.
socket=$run/engine.sock
if [ "$(printf %s "$socket" | wc -c)" -gt 107 ]; then
    short=$(mktemp -d /tmp/glm.XXXXXX)
    socket=$short/engine.sock
fi

alive() { kill -0 "$1" 2>/dev/null; }

# A stream whose client does not read must not hold the terminal: both get five
# seconds, then no more.
stop() {
    trap '' INT TERM HUP
    for pid in $nginx_pid $engine_pid; do
        kill -TERM "$pid" 2>/dev/null || true
    done
    i=0
    for pid in $nginx_pid $engine_pid; do
        while alive "$pid" && [ $i -lt 50 ]; do
            i=$((i + 1))
            sleep 0.1
        done
        ! alive "$pid" || kill -INT "$pid"
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$run" "$run.lock"
    [ -z "$short" ] || rm -rf "$short"
}
die() {
    echo "$1" >&2
    stop
    exit 1
}
trap 'stop; exit 0' INT TERM HUP

# 2: the engine is loading its model, which may take minutes.
health() {
    perl -MIO::Socket::INET -e '
        my $s = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$ARGV[0]", Timeout => 2) or exit 1;
        print $s "GET /health HTTP/1.0\r\n\r\n";
        my $r = join "", <$s>;
        exit($r =~ m{^HTTP/1\.1 200} ? 0 : $r =~ /engine_loading/ ? 2 : 1)' "$PORT"
}

# Everything is quoted for nginx: paths may hold blanks.
user=
[ "$(id -u)" != 0 ] || user="user $(id -un);"
sed -e "s|@USER@|$user|" -e "s|@B@|$(printf %s "$B" | sed 's/[&|\\]/\\&/g')|g" \
    -e "s|@RUN@|$(printf %s "$run" | sed 's/[&|\\]/\\&/g')|g" \
    -e "s|@SOCKET@|$(printf %s "$socket" | sed 's/[&|\\]/\\&/g')|g" \
    -e "s|@PORT@|$PORT|g" conf/run.conf.in >"$run/nginx.conf"

"$B/glm-engine" --model "$MODEL" --socket "$socket" 9>&- &
engine_pid=$!
"$nginx" -p "$run" -e "$run/error.log" -c "$run/nginx.conf" 9>&- &
nginx_pid=$!

i=0
until health; do
    [ $? != 2 ] || i=0
    alive $engine_pid || die "glm-engine did not start"
    alive $nginx_pid || { cat "$run/error.log" >&2; die "nginx did not start; is port $PORT in use?"; }
    i=$((i + 1))
    [ $i -lt $((WAIT * 10)) ] || die "not ready after $WAIT s"
    sleep 0.1
done

cat <<END

Ready: http://127.0.0.1:$PORT (Ctrl-C stops it).  Try:

    curl http://127.0.0.1:$PORT/v1/completions -d '{"prompt": "English: Where is the file? German:"}'

END

while alive $engine_pid && alive $nginx_pid; do
    sleep 1 & wait $! || true
done
cat "$run/error.log" >&2 || true
die "$(alive $engine_pid && echo nginx || echo glm-engine) ended"
