#!/bin/sh
# Gets Debian's chromium for the tests that drive a browser: `make chromium`. As root it is installed; otherwise its
# packages are unpacked into the folder given, and nothing is installed. Where neither works this says what to do and
# ends well: those tests are skipped then, with the same words.
set -u
folder=${1:?folder to unpack into}
found=$(command -v chromium || command -v chromium-browser || true)
if [ -n "$found" ] || [ -x "$folder/usr/lib/chromium/chromium" ]; then
    exit 0
fi
say() {
    echo "note: $1. The tests of the dashboard's page are skipped without a browser: install chromium, or set CHROMIUM=/path/to/chromium."
    exit 0
}
command -v apt-get >/dev/null || say "chromium is missing, and there is no apt-get here"
if [ "$(id -u)" = 0 ]; then
    echo "installing Debian's chromium, for the tests of the dashboard's page"
    apt-get install -y -q --no-install-recommends chromium >/dev/null 2>&1 \
        || { apt-get update -q >/dev/null 2>&1 && apt-get install -y -q --no-install-recommends chromium >/dev/null 2>&1; } \
        || say "apt-get could not install chromium"
    exit 0
fi
command -v dpkg >/dev/null || say "chromium is missing, and there is no dpkg to unpack it with"
echo "unpacking Debian's chromium into $folder, for the tests of the dashboard's page"
packages=$(apt-get install -s --no-install-recommends chromium 2>/dev/null | sed -n 's/^Inst \([^ ]*\).*/\1/p')
[ -n "$packages" ] || say "apt-get knows no chromium"
mkdir -p "$folder/debs" || say "$folder cannot be written"
# shellcheck disable=SC2086 # one word a package
(cd "$folder/debs" && apt-get download -q $packages >/dev/null 2>&1) || say "apt-get could not download chromium"
for package in "$folder"/debs/*.deb; do
    dpkg -x "$package" "$folder" || say "$package could not be unpacked"
done
rm -rf "$folder/debs"
