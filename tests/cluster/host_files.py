"""The files of the real hosts, and the script that puts each host's over the machine's in its own mount namespace."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

FIRST_PROCESS = """
set -e
exec 2>&1
host=$1 folder=$2
hostname "$host"
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir /run/sshd /run/lock
mount --bind "$folder/hosts" /etc/hosts
mount --bind "$folder/$host/hostname" /etc/hostname
mount --bind "$folder/passwd" /etc/passwd
mount --bind "$folder/$host/home" "$folder/home"
mount --bind "$folder/$host/boot_id" /proc/sys/kernel/random/boot_id
if [ -e "$folder/ld.so.cache" ]; then
    mount --bind "$folder/ld.so.cache" /etc/ld.so.cache
    ln -s "$folder/$host/gpus" /run/fake_nvml
fi
exec /usr/sbin/sshd -D -e -f "$folder/sshd_config" -h "$folder/$host/hostkey"
"""
"""A host from its start on: sshd is its first process, and takes in what others leave behind."""


def write_files(folder: Path, addresses: Mapping[str, str], driver: bool) -> None:
    """Names, keys, homes and the settings of sshd; with `driver` the fake libnvidia-ml.so.1 of fake_nvml.c."""
    folder.chmod(0o755)
    names = "".join(f"{address} {host}\n" for host, address in addresses.items())
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    (folder / "sshd_config").write_text(
        "Port 22\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\nPidFile none\nSetEnv LANG=C.UTF-8\n"
    )
    (folder / "home").mkdir()
    others = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
    (folder / "passwd").write_text("\n".join([f"root:x:0:0:root:{folder}/home:/bin/bash", *others]) + "\n")
    _make_key(folder / "id_ed25519")
    for host in addresses:
        home = home_of(folder, host)
        (home / ".ssh").mkdir(parents=True)
        (home / ".ssh").chmod(0o700)
        (folder / host / "hostname").write_text(f"{host}\n")
        write_boot_id(folder / host)
        _make_key(folder / host / "hostkey")
        for name, source in {"id_ed25519": "", "id_ed25519.pub": ".pub", "authorized_keys": ".pub"}.items():
            shutil.copy(folder / f"id_ed25519{source}", home / ".ssh" / name)
        (home / ".ssh/config").write_text("Host lwnode* lwhead\n    LogLevel ERROR\n")
    keys = {host: (folder / host / "hostkey.pub").read_text().strip() for host in addresses}
    for host in addresses:
        known = "".join(f"{other},{address} {keys[other]}\n" for other, address in addresses.items())
        (home_of(folder, host) / ".ssh/known_hosts").write_text(known)
    if driver:
        _make_driver(folder)


def home_of(folder: Path, host: str) -> Path:
    """The home of a host's root."""
    return folder / host / "home"


def write_boot_id(folder: Path) -> None:
    """A new one, as every start of a machine has."""
    (folder / "boot_id").write_text(f"{uuid.uuid4()}\n")


def _make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)


def _make_driver(folder: Path) -> None:
    """Found by the dynamic linker as a driver is, without a variable: a login, a Slurm step and a rank all have it."""
    (folder / "driver").mkdir()
    library, source = folder / "driver/libnvidia-ml.so.1", Path(__file__).with_name("fake_nvml.c")
    state = '-DFAKE_NVML_FILE="/run/fake_nvml"'
    subprocess.run(["cc", "-shared", "-fPIC", state, "-o", str(library), str(source)], check=True)
    subprocess.run(
        ["ldconfig", "-C", str(folder / "ld.so.cache"), str(library.parent)], check=True, capture_output=True
    )
