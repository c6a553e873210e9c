#!/usr/bin/env bash
# Runs schemathesis, which makes requests out of src/api/openapi.json and compares the answers with it.
# Usage: tests/peers/schemathesis.sh PROGRAM [OPTION]...     PROGRAM: target/release/invited; the options are schemathesis's
# Needs python3 with venv. The virtual environment is in $INVITED_TEST_VENV, else /var/cache/invited-test/schemathesis; one
# that is already whole is kept. Takes less than a minute; ends with the exit code of schemathesis.
set -euo pipefail
program=$(realpath "$1")
shift
root=$(realpath "$(dirname "$0")/../..")
venv=${INVITED_TEST_VENV:-/var/cache/invited-test/schemathesis}
version=4.32.5

if [ "$(cat "$venv/.invited-whole" 2>/dev/null)" != "$version" ]; then
    rm -rf "$venv"
    mkdir -p "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$version"
    echo "$version" > "$venv/.invited-whole"
fi

folder=$(mktemp -d)
server=
cleanup() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$folder"
}
trap cleanup EXIT

export INVITED_DB=$folder/invited.sqlite
key=$("$program" create example.com schemathesis --allow account,contact,reset,uses:1000000)
mkfifo "$folder/stderr"
"$program" serve --listen 127.0.0.1:0 2> "$folder/stderr" &
server=$!
# The first line says where it listens; the log that follows is kept, for when something is wrong.
exec 3< "$folder/stderr"
address=
while IFS= read -r -t 30 -u 3 line; do
    case $line in
        "listening on "*) address=${line#listening on }; break ;;
        *) echo "$line" >&2 ;;
    esac
done
[ -n "$address" ] || { echo "schemathesis.sh: the server does not listen" >&2; exit 1; }
cat <&3 > "$folder/log" &

# As a program that likes JSON: what an answer is without that, tests/it/api.rs looks at. Two checks are not for this API:
# a revoked invite is still there to be looked at (use_after_free), and what one field may be depends on others, or on what
# was sent before, which the document says in words (positive_data_acceptance).
# One worker, since threads of Python 3.11 trip over each other in it. It sends some bodies in chunks, and takes 411 for no
# refusal unless told so.
cat > "$folder/schemathesis.toml" <<'END'
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "406", "409", "411", "413", "415", "422", "429"]
END
code=0
(cd "$folder" && "$venv/bin/schemathesis" run "$root/src/api/openapi.json" --url "$address" \
    --header "Authorization: Bearer $key" --header "Accept: application/json" \
    --checks all --exclude-checks use_after_free,positive_data_acceptance \
    --max-examples 150 --seed 3 --workers 1 --no-color "$@") || code=$?
if grep -E 'status=5|reason=(panic|internal)' "$folder/log" >&2; then
    echo "schemathesis.sh: the server failed at the requests above" >&2
    code=1
fi
exit "$code"
