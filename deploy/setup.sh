#!/bin/sh
# Checks what the build needs, names what is missing and how to get it, then makes libtorch ready.
set -u
cd "$(dirname "$0")/.." || exit 1
missing=0
need() { # need NAME HOW-TO-GET-IT CHECK...
    name=$1 how=$2; shift 2
    "$@" >/dev/null 2>&1 && return
    echo "setup: missing $name: $how" >&2
    missing=1
}
cxx17() { echo 'int main() { if constexpr (true) return 0; }' | "${CXX:-c++}" -std=c++17 -x c++ -fsyntax-only -; }
need "a Rust toolchain (cargo)" "install rustup from your distribution or rustup.rs, then 'rustup default stable'" cargo --version
need "a C++17 compiler (${CXX:-c++})" "on Debian or Ubuntu 'apt-get install g++', on Fedora 'dnf install gcc-c++'" cxx17
need "Python 3" "on Debian or Ubuntu 'apt-get install python3', on Fedora 'dnf install python3'" python3 --version
need "pip for Python 3" "on Debian or Ubuntu 'apt-get install python3-pip', on Fedora 'dnf install python3-pip'" python3 -m pip --version
[ "$missing" = 0 ] || exit 1
exec python3 deploy/libtorch.py
