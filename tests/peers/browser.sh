#!/bin/sh
# Puts what the browser tests need beside Chromium into a folder: playwright-core, which drives it, and axe-core, which looks for
# what people with a screen reader, a keyboard or weak eyes would stumble over. Does nothing where the folder is whole.
# Chromium itself and zbarimg come from Debian: apt-get install chromium zbar-tools nodejs npm.
set -eu
dir=${INVITED_TEST_NODE:-/var/cache/invited-test/node}
playwright=1.65.1
axe=4.14.1
whole="playwright-core@$playwright axe-core@$axe"
[ "$(cat "$dir/.invited-whole" 2>/dev/null || true)" = "$whole" ] && exit 0
mkdir -p "$dir"
rm -f "$dir/.invited-whole"
cd "$dir"
[ -e package.json ] || echo '{ "private": true }' > package.json
# Both are plain JavaScript: no script of theirs need run, and no browser is fetched.
npm install --no-audit --no-fund --ignore-scripts --save-exact "playwright-core@$playwright" "axe-core@$axe"
echo "$whole" > .invited-whole
