#!/usr/bin/env python3
"""Point `.libtorch` at a libtorch 2.11.0, fetching its CPU flavour once if none is there.

In order: $LIBTORCH, then the active Python's `torch==2.11.0`, then a cache shared by all
checkouts ($ANYBIT_CACHE, by default ~/.cache/anybit). A fetch is verified by hash, happens in
a scratch folder under a lock, and appears in the cache in one rename: it is safe to interrupt
at any moment and run again.
"""
import fcntl
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

VERSION = "2.11.0"
REQUIREMENTS = pathlib.Path(__file__).with_name("libtorch-cpu.txt")
CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_25_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]
KEEP = re.compile(
    r"torch/(include/.*|lib/(libtorch_cpu\.so|libc10\.so|libgomp\.so\.1))"
    r"|nvidia/cu13/lib/lib(cudart|cupti)\.so\.13"
)


def fail(message):
    sys.exit(f"setup: {message}")


def version_of(torch):
    """The version of the libtorch in folder `torch`, or None where there is none."""
    header = torch / "include/torch/headeronly/version.h"
    if not header.exists():
        header = torch / "include/torch/csrc/api/include/torch/version.h"
    if not header.exists() or not (torch / "lib/libtorch_cpu.so").exists():
        return None
    found = dict(re.findall(r"#define TORCH_VERSION_(MAJOR|MINOR|PATCH) (\d+)", header.read_text()))
    return ".".join(found.get(part, "?") for part in ("MAJOR", "MINOR", "PATCH"))


def from_environment():
    given = os.environ.get("LIBTORCH")
    if not given:
        return None
    torch = pathlib.Path(given).expanduser().resolve()
    found = version_of(torch)
    if found is None:
        fail(f"LIBTORCH={given} holds no libtorch (no lib/libtorch_cpu.so and include/): unset it or point it at one")
    if found != VERSION:
        fail(f"LIBTORCH={given} is libtorch {found}, anybit needs {VERSION}: unset it or point it at that version")
    return torch


def from_python():
    probe = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    python = "python" if os.environ.get("VIRTUAL_ENV") else "python3"
    answer = subprocess.run([python, "-c", probe], capture_output=True, text=True)
    folder = answer.stdout.strip()
    if answer.returncode != 0 or not folder:
        return None
    torch = pathlib.Path(folder)
    return torch if version_of(torch) == VERSION else None


def fetch(into):
    """Download, verify and unpack the wheels into the folder `into`."""
    wheels = into / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:",
               "--disable-pip-version-check", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "none",
               "--require-hashes", "--dest", str(wheels), "--requirement", str(REQUIREMENTS)]
    for name in PLATFORMS:
        command += ["--platform", name]
    print(f"setup: fetching libtorch {VERSION} (CPU flavour, 540 MB, once)", file=sys.stderr, flush=True)
    if subprocess.run(command, stdout=sys.stderr).returncode != 0:
        fail("pip could not fetch libtorch (above); check the network or proxy, then run the same command again")
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if KEEP.fullmatch(member):
                    archive.extract(member, into)
    shutil.rmtree(wheels)
    # With no libtorch_cuda.so beside it this makes torch-sys link the CPU library alone.
    (into / "torch/lib/libtorch.so").write_text("INPUT(libtorch_cpu.so)\n")
    (into / "torch/build-version").write_text(VERSION + "\n")


def from_cache():
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        fail(f"there is no prepared libtorch for {platform.system()} {platform.machine()}: set LIBTORCH to a libtorch {VERSION}")
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    cache = pathlib.Path(os.environ.get("ANYBIT_CACHE") or pathlib.Path(base) / "anybit")
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / f"libtorch-{VERSION}-cpu-x86_64"
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second checkout waits here instead of fetching too
        for stale in cache.glob("fetch-*"):
            shutil.rmtree(stale, ignore_errors=True)
        if version_of(home / "torch") != VERSION:
            free = shutil.disk_usage(cache).free
            if free < 3 << 30:
                fail(f"{cache} has {free >> 20} MiB free and libtorch needs 3 GiB while unpacking: free some, or set ANYBIT_CACHE")
            shutil.rmtree(home, ignore_errors=True)
            scratch = pathlib.Path(tempfile.mkdtemp(prefix="fetch-", dir=cache))
            try:
                fetch(scratch)
                scratch.rename(home)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return home / "torch"


def main():
    try:
        torch = from_environment() or from_python() or from_cache()
    except KeyboardInterrupt:
        fail("interrupted; nothing half-made is left, run the same command again")
    link = CHECKOUT / ".libtorch"
    if not (link.is_symlink() and pathlib.Path(os.readlink(link)) == torch):
        fresh = CHECKOUT / f".libtorch.{os.getpid()}"
        fresh.symlink_to(torch)
        fresh.replace(link)
    print(f"setup: libtorch {VERSION} at {torch}", file=sys.stderr)


if __name__ == "__main__":
    main()
