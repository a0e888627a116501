#!/usr/bin/env python3
"""Boots Debian kernels under QEMU and sends the kernel's pktgen through ringwall on virtio_net, wire and routed.

Another kernel and another driver than this machine's, with several queues and workers: this shows that ringwall works there, not how
fast, since the processor is emulated. The machine's root folder is the guest's, read-only; what the guest changes is gone with it.

    sudo bench/lab/vm.py                               # every kernel, the debug build
    sudo bench/lab/vm.py --kernel 6.12 --binary target/release/ringwall
    sudo bench/lab/vm.py --kernel 6.1 --test 'run_kernel_paths' --test 'run_machine_state crash'

Exit status: 0 where every check holds on every kernel, 1 where one does not, 2 where a kernel could not be tried.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Kernels by name: the suite, and the package that depends on the newest of its kind.
KERNELS = {
    "6.1": ("bookworm", "linux-image-amd64"),
    "6.12": ("bookworm-backports", "linux-image-amd64"),
    "newest": ("trixie-backports", "linux-image-amd64"),
}
# What the guest needs before it has a root folder.
EARLY_MODULES = ["virtio_pci", "9pnet_virtio", "9p", "overlay"]
# Ports of the guest: name, the bridge it hangs on, the last byte of its MAC address.
PORTS = [("gen", "clients", 1), ("outside", "clients", 2), ("inside", "servers", 3), ("sink", "servers", 4)]
QUEUES = 2
CPUS = 4

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /host /out /rw /new
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules/order); do
    /bin/busybox insmod /modules/$module || echo "guest: $module does not load"
done
nine() { /bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,$2 $1 $3; }
nine root ro,cache=loose /host && nine out rw /out || { echo "guest: no root folder"; /bin/busybox poweroff -f; }
/bin/busybox mount -t tmpfs -o size=1500m rw /rw
/bin/busybox mkdir -p /rw/up /rw/work
/bin/busybox mount -t overlay -o lowerdir=/host,upperdir=/rw/up,workdir=/rw/work over /new
/bin/busybox mount -t tmpfs run /new/run
/bin/busybox mkdir -p /new/run/out /new/lib/modules /new/proc /new/sys /new/dev
/bin/busybox mount --bind /out /new/run/out
/bin/busybox ln -s @MODULES@ /new/lib/modules/$(/bin/busybox uname -r)
for name in proc sys dev; do /bin/busybox mount --move /$name /new/$name; done
exec /bin/busybox switch_root /new @PYTHON@ @GUEST@
"""


class CannotTry(Exception):
    """Why a kernel was not tried."""


def run(*command, **options):
    """Runs a program; its output as text. CannotTry where it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["no message"]
        raise CannotTry(f"`{shlex.join(map(str, command))}` failed: {lines[-1]}")
    return result.stdout


class Apt:
    """Packages of one suite of Debian, apart from those of this machine."""

    def __init__(self, suite, folder):
        self.folder = folder
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        # The mirror that this machine has its own packages from.
        targets = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian")
        if not targets:
            raise CannotTry("apt knows no mirror of Debian here")
        mirror = targets.splitlines()[0]
        (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
        self.options = []
        for name, value in {
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": folder / "cache",
            "APT::Sandbox::User": "root",
        }.items():
            self.options += ["-o", f"{name}={value}"]

    def packages_behind(self, package):
        """The kernel's own packages, image and modules, that packages of no content depend on."""
        run("apt-get", *self.options, "update")
        waiting, found = [package], []
        while waiting:
            text = run("apt-cache", *self.options, "show", "--no-all-versions", waiting.pop())
            depends = re.search(r"^Depends: (.*)$", text, re.MULTILINE)
            for name in re.findall(r"\blinux-(?:image|modules|binary)-[^ ,|]+", depends[1] if depends else ""):
                if name not in found:
                    waiting.append(name)
                    found.append(name)
        kernels = [name for name in found if re.search(r"\d+\.\d+", name)]
        if not kernels:
            raise CannotTry(f"the package {package} names no kernel")
        return kernels

    def unpack(self, package, into):
        """Fetches a package and unpacks it."""
        with tempfile.TemporaryDirectory() as here:
            run("apt-get", *self.options, "download", package, cwd=here)
            (deb,) = pathlib.Path(here).glob("*.deb")
            run("dpkg-deb", "-x", deb, into)


def fetched(name, folder):
    """The files of a kernel: its image and the folder of its modules. Kept from one run to the next."""
    suite, package = KERNELS[name]
    tree = folder / "tree"
    if not (tree / "complete").exists():
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        apt = Apt(suite, folder / "apt")
        for kernel in apt.packages_behind(package):
            print(f"{name}: fetching {kernel}", flush=True)
            apt.unpack(kernel, tree)
        modules = next((tree / "lib/modules").iterdir(), None) if (tree / "lib").exists() else None
        if modules is None:
            (modules,) = (tree / "usr/lib/modules").iterdir()
            (tree / "lib").symlink_to("usr/lib")
        run("depmod", "-b", tree, modules.name)
        (tree / "complete").touch()
    (modules,) = (tree / "lib/modules").iterdir()
    # Beside its modules, in newer packages.
    (image,) = [*(tree / "boot").glob("vmlinuz-*"), *modules.glob("vmlinuz")]
    return image, modules


def initramfs(tree, modules, into):
    """Packs what the guest starts with: busybox, the modules that lead to its root folder, and the first script."""
    with tempfile.TemporaryDirectory() as here:
        root = pathlib.Path(here)
        (root / "bin").mkdir()
        (root / "modules").mkdir()
        shutil.copy(shutil.which("busybox"), root / "bin/busybox")
        order = []
        for module in EARLY_MODULES:
            if not any(modules.rglob(f"{module}.ko*")):
                continue  # built in, or the guest says what it lacks
            shown = run("modprobe", "-d", tree, "-S", modules.name, "--show-depends", module)
            for line in shown.splitlines():
                if not line.startswith("insmod "):
                    continue  # one that it needs is built in
                path = pathlib.Path(line.split()[1])
                plain = path.name.removesuffix(".xz")
                if plain in order:
                    continue
                order.append(plain)
                content = path.read_bytes()
                if path.suffix == ".xz":
                    content = subprocess.run(["xz", "-dc"], input=content, capture_output=True, check=True).stdout
                (root / "modules" / plain).write_bytes(content)
        (root / "modules/order").write_text("\n".join(order) + "\n")
        guest = REPOSITORY / "bench/lab/guest.py"
        (root / "init").write_text(INIT.replace("@MODULES@", str(modules)).replace("@GUEST@", str(guest)).replace("@PYTHON@", sys.executable))
        (root / "init").chmod(0o755)
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        packed = subprocess.run(
            ["busybox", "cpio", "-o", "-H", "newc"], cwd=root, input=names.encode(), capture_output=True, check=True
        )
        into.write_bytes(packed.stdout)


def remove_leftovers():
    """Deletes the namespaces of runs that were killed before they could do so."""
    for line in run("ip", "netns", "list").splitlines():
        name = line.split()[0] if line.strip() else ""
        left = re.fullmatch(r"ringwall-vm-(\d+)", name)
        if left and not pathlib.Path("/proc", left[1]).exists():
            subprocess.run(["ip", "netns", "del", name], check=False)


@contextlib.contextmanager
def wiring(namespace):
    """A namespace with the guest's ports, two and two on a bridge."""
    run("ip", "netns", "add", namespace)
    try:
        for bridge in sorted({bridge for _, bridge, _ in PORTS}):
            # No tree, no groups: everything goes to the other port as it is.
            run("ip", "-n", namespace, "link", "add", bridge, "up", "type", "bridge", "stp_state", "0", "mcast_snooping", "0")
        for port, bridge, _ in PORTS:
            run("ip", "-n", namespace, "tuntap", "add", port, "mode", "tap", "multi_queue", "vnet_hdr")
            run("ip", "-n", namespace, "link", "set", port, "master", bridge, "up")
        yield
    finally:
        subprocess.run(["ip", "netns", "del", namespace], check=False)


def qemu(image, initrd, out, log, minutes):
    """Runs the guest until it powers itself off."""
    command = [
        "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(CPUS), "-m", "4G",
        "-nographic", "-no-reboot", "-kernel", image, "-initrd", initrd,
        "-append", "console=ttyS0 panic=-1 quiet net.ifnames=0 mitigations=off",
        "-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
        "-virtfs", f"local,path={out},mount_tag=out,security_model=none",
    ]  # fmt: skip
    for port, _, number in PORTS:
        vectors = 2 * QUEUES + 2
        command += [
            "-netdev", f"tap,id={port},ifname={port},queues={QUEUES},script=no,downscript=no,vhost=off",
            "-device", f"virtio-net-pci,netdev={port},mq=on,vectors={vectors},mac=52:54:00:00:00:{number:02x},"
            "guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,disable-legacy=on,iommu_platform=on",
        ]  # fmt: skip
    namespace = f"ringwall-vm-{os.getpid()}"
    with wiring(namespace), open(log, "wb") as file:
        # The guest ends with this process, also where that is killed.
        bound = ["setpriv", "--pdeathsig", "KILL", "--", "ip", "netns", "exec", namespace, *map(str, command)]
        guest = subprocess.Popen(bound, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            guest.wait(minutes * 60)
        except subprocess.TimeoutExpired:
            raise CannotTry(f"the guest did not end within {minutes} minutes; its console is in {log}") from None
        finally:
            guest.kill()
            guest.wait()


def tried(name, options):
    """Boots a kernel and answers its release and its checks."""
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    image, modules = fetched(name, folder)
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    settings = {
        "ringwall": str(options.binary.resolve()),
        "packets": options.packets,
        "rate": options.rate,
        "tests": options.test,
        "traffic": not options.tests_only,
        "queues": QUEUES,
        "ports": {port: f"52:54:00:00:00:{number:02x}" for port, _, number in PORTS},
    }
    (out / "settings.json").write_text(json.dumps(settings))
    initrd = folder / "initrd"
    initramfs(folder / "tree", modules, initrd)
    print(f"{name}: booting {modules.name}", flush=True)
    qemu(image, initrd, out, folder / "console.log", options.minutes)
    results = out / "checks"
    if not results.exists():
        raise CannotTry(f"the guest wrote no checks; its console is in {folder / 'console.log'}")
    checks = [line.split("\t", 2) for line in results.read_text().splitlines()]
    if not (out / "done").exists():
        checks.append(["failed", "the guest ran to its end", f"see {folder / 'console.log'}"])
    return modules.name, checks


def main():
    """Tries each kernel and prints what held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="which kernel (repeat for several; default: all)")
    parser.add_argument("--binary", type=pathlib.Path, default=REPOSITORY / "target/debug/ringwall", help="the ringwall to try")
    parser.add_argument("--packets", type=int, default=5_000, help="packets of each check (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=500, help="packets a second (default: %(default)s)")
    parser.add_argument(
        "--test", action="append", default=[],
        help="end-to-end tests to run in the guest as well: a test program that lies beside the binary, in deps/, and what of it",
    )
    parser.add_argument("--tests-only", action="store_true", help="run the tests and send nothing")
    parser.add_argument("--out", type=pathlib.Path, default=REPOSITORY / "target/lab-vm", help="where kernels and results lie")
    parser.add_argument("--minutes", type=int, default=40, help="the most that one kernel may take (default: %(default)s)")
    parser.add_argument("-o", "--output", choices=["human", "json"], default="human")
    options = parser.parse_args()
    options.out = options.out.resolve()
    if os.geteuid() != 0:
        print("vm.py: needs root, to make a network namespace for the guest: run it with sudo", file=sys.stderr)
        return 2
    for program in ("qemu-system-x86_64", "busybox", "modprobe", "depmod", "ip", "setpriv", "xz", "apt-get", "dpkg-deb"):
        if not shutil.which(program):
            print(f"vm.py: there is no {program}: run `make lab-vm`, which installs what is missing", file=sys.stderr)
            return 2
    if not options.binary.exists():
        print(f"vm.py: there is no {options.binary}: build it first (`make build`)", file=sys.stderr)
        return 2
    # Ends the guest and its namespace, too.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(2))
    remove_leftovers()
    status, records = 0, []
    for name in options.kernel or KERNELS:
        try:
            release, checks = tried(name, options)
        except CannotTry as error:
            print(f"vm.py: {name} was not tried: {error}", file=sys.stderr)
            records.append({"kernel": name, "skipped": str(error)})
            status = 2
            continue
        for result, check, detail in checks:
            records.append({"kernel": release, "check": check, "result": result, "detail": detail})
            if options.output == "human":
                print(f"  {result:<8} {check}: {detail}")
        if status == 0 and any(result == "failed" for result, _, _ in checks):
            status = 1
    if options.output == "json":
        print(json.dumps(records, indent=1))
    return status


if __name__ == "__main__":
    sys.exit(main())
