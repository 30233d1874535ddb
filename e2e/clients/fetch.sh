#!/usr/bin/env bash
# Makes the clients of test_clients.py, once for each version of what they are made of: fetch.sh TOOLS writes TOOLS/clients-go and
# TOOLS/clients-python.
set -euo pipefail
tools=$1
here=$(cd "$(dirname "$0")" && pwd)
stamp() { cat "$@" | sha256sum | cut -d' ' -f1; }
go=$(stamp "$here"/go/*)
if [ "$(cat "$tools/clients-go.stamp" 2>/dev/null)" != "$go" ]; then
  go -C "$here/go" build -o "$tools/clients-go" .
  echo "$go" > "$tools/clients-go.stamp"
fi
python=$(stamp "$here/python/requirements.txt")
if [ "$(cat "$tools/clients-python.stamp" 2>/dev/null)" != "$python" ]; then
  rm -rf "$tools/clients-python"
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-warn-conflicts --target "$tools/clients-python" -r "$here/python/requirements.txt"
  echo "$python" > "$tools/clients-python.stamp"
fi
