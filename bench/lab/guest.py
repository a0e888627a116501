"""What bench/lab/vm.py runs in its guest as the first process: ringwall between virtio_net ports, and pktgen through it.

Writes a line for each check to /run/out/checks: passed, failed or skipped; what; the figures. Then it powers the guest off.

    clients: gen ─── outside [ ringwall ] inside ─── sink: servers
"""

import ctypes
import glob
import json
import os
import shlex
import subprocess
import sys
import time
import traceback

OUT = "/run/out"
HERE = os.path.dirname(os.path.abspath(__file__))
CONFIG, MANIFESTS = "/run/lab.yaml", "/run/lab"
FLOWS = 1000
SERVER, CLIENT = "10.244.0.1", "198.18.0.1"
UDP_PORT, DENIED_PORT = 9, 81
SETTINGS = json.load(open(f"{OUT}/settings.json", encoding="utf-8"))
# A gateway that waits this long for something is broken, however slow the processor.
PATIENCE = 240


class Failed(Exception):
    """Why a check did not hold."""


def run(*command, **options):
    """Runs a program; its output. Failed where it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **options)
    if result.returncode != 0:
        raise Failed(f"{shlex.join(command)}: {(result.stderr + result.stdout).strip()[-300:]}")
    return result.stdout


def record(result, check, detail):
    """Notes a check."""
    with open(f"{OUT}/checks", "a", encoding="utf-8") as file:
        file.write(f"{result}\t{check}\t{' '.join(str(detail).split())}\n")
    print(f"guest: {result} {check}: {detail}", flush=True)


def checked(name, check, *arguments):
    """Runs a check and notes what came of it."""
    try:
        record("passed", name, check(*arguments))
        return True
    except Failed as error:
        record("failed", name, error)
    except Exception as error:  # the host sees only what is recorded
        traceback.print_exc()
        record("failed", name, repr(error))
    return False


def sysctl(name, value, namespace=None):
    """Sets a number of the kernel."""
    path = f"/proc/sys/{name}"
    if namespace:
        run("ip", "netns", "exec", namespace, "sh", "-c", f"echo {value} > {path}")
    else:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(value))


def prepare():
    """Mounts, modules, names of ports, namespaces of clients and servers, and a counter of what the server gets."""
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    for what, where in (("bpf", "/sys/fs/bpf"), ("cgroup2", "/sys/fs/cgroup"), ("tracefs", "/sys/kernel/tracing")):
        subprocess.run(["mount", "-t", what, what, where], check=False)
    for module in ("virtio_net", "pktgen", "veth", "nf_tables", "br_netfilter", "tun"):
        subprocess.run(["modprobe", module], check=False)  # may be built in
    run("ip", "link", "set", "lo", "up")
    sysctl("net/ipv6/conf/default/disable_ipv6", 1)
    names = {}
    for link in json.loads(run("ip", "-j", "link")):
        names[link.get("address")] = link["ifname"]
    for port, mac in SETTINGS["ports"].items():
        if mac not in names:
            raise Failed(f"no virtio_net port has the address {mac}")
        run("ip", "link", "set", names[mac], "down")
        run("ip", "link", "set", names[mac], "name", port)
        run("ethtool", "-L", port, "combined", str(SETTINGS["queues"]))
    for namespace, port in (("clients", "gen"), ("servers", "sink")):
        run("ip", "netns", "add", namespace)
        run("ip", "link", "set", port, "netns", namespace)
        sysctl("net/ipv6/conf/all/disable_ipv6", 1, namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        run("ip", "-n", namespace, "link", "set", port, "up")
    # What has been counted goes no further: the server would answer each with an ICMP error.
    counters = "".join(f"udp dport {port} counter drop; " for port in (UDP_PORT, DENIED_PORT))
    rules = f"table netdev lab {{ chain in {{ type filter hook ingress device sink priority 0; {counters} }}; }}"
    run("ip", "netns", "exec", "servers", "nft", rules)
    run("python3" if not sys.executable else sys.executable, f"{HERE}/cluster.py", "--policies", "1000", "--out", MANIFESTS)
    return f"Linux {os.uname().release}, {SETTINGS['queues']} queues each, {os.cpu_count()} CPUs"


def arrived(port):
    """Packets that the servers' port has taken in, of a UDP port."""
    listed = json.loads(run("ip", "netns", "exec", "servers", "nft", "-j", "list", "table", "netdev", "lab"))
    for entry in listed["nftables"]:
        expressions = entry.get("rule", {}).get("expr", [])
        if any(it.get("match", {}).get("right") == port for it in expressions):
            return next(it["counter"]["packets"] for it in expressions if "counter" in it)
    raise Failed(f"no counter of port {port}")


class Gateway:
    """A running `ringwall run`."""

    def __init__(self, name, config):
        with open(CONFIG, "w", encoding="utf-8") as file:
            json.dump(config, file)
        self.log = open(f"{OUT}/{name}.log", "wb")
        self.process = subprocess.Popen(
            [SETTINGS["ringwall"], "run", "--config", CONFIG], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )
        until = time.monotonic() + PATIENCE
        while not self.ready():
            if self.process.poll() is not None:
                raise Failed(f"ringwall ended with status {self.process.returncode}: {self.last_words()}")
            if time.monotonic() > until:
                raise Failed(f"ringwall was not ready within {PATIENCE} s: {self.last_words()}")
            time.sleep(1)

    def last_words(self):
        """The end of its log."""
        with open(self.log.name, encoding="utf-8", errors="replace") as file:
            return file.read()[-400:]

    def status(self):
        """What `ringwall status` says; None where it does not answer yet."""
        command = [SETTINGS["ringwall"], "status", "--config", CONFIG, "-o", "json"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        try:
            return json.loads(result.stdout)
        except json.JSONDecodeError:
            return None

    def ready(self):
        """Whether each worker decides by a snapshot and each port is open."""
        status = self.status() or {}
        dataplane = status.get("dataplane") or {}
        workers, ports = dataplane.get("workers") or [], dataplane.get("ports") or []
        generations = [worker.get("generation") or 0 for worker in workers]
        return bool(generations) and min(generations) > 0 and len(ports) == 2

    def stop(self):
        """Ends it and takes everything off the ports."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Failed(f"ringwall did not end within {PATIENCE} s") from None
        run(SETTINGS["ringwall"], "detach", "--config", CONFIG)


def sent_by_pktgen(mac, port):
    """Sends with the kernel's pktgen for as long as the packets take; how many it sent."""
    seconds = max(1, SETTINGS["packets"] // SETTINGS["rate"])
    text = run(
        "ip", "netns", "exec", "clients", "sh", f"{HERE}/pktgen.sh", "gen", mac,
        "64", str(FLOWS), str(SETTINGS["rate"]), str(SETTINGS["queues"]), str(seconds), str(port),
    )  # fmt: skip
    sent = sum(int(line.split("pkts-sofar:")[1].split()[0]) for line in counts_of_pktgen() if "pkts-sofar:" in line)
    if sent == 0:
        raise Failed(f"pktgen sent nothing: {text}")
    return sent


def counts_of_pktgen():
    """Lines of pktgen's threads."""
    text = run("ip", "netns", "exec", "clients", "sh", "-c", "cat /proc/net/pktgen/gen@*")
    return text.splitlines()


def settled(count):
    """A count that has not moved for two seconds."""
    before = count()
    while True:
        time.sleep(2)
        now = count()
        if now == before:
            return now
        before = now


def reached():
    """Waits until a datagram of a client's socket arrives: neighbours are known then."""
    program = f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('{SERVER}', {UDP_PORT}))"
    before, until = arrived(UDP_PORT), time.monotonic() + PATIENCE
    while arrived(UDP_PORT) == before:
        if time.monotonic() > until:
            raise Failed("no datagram of a client's socket arrived")
        run("ip", "netns", "exec", "clients", sys.executable, "-c", program)
        time.sleep(1)


def passes(gateway, mac):
    """Every allowed packet arrives, once, and both workers take part."""
    reached()
    before = settled(lambda: arrived(UDP_PORT))
    sent = sent_by_pktgen(mac, UDP_PORT)
    got = settled(lambda: arrived(UDP_PORT)) - before
    dataplane = gateway.status()["dataplane"]
    shares = [worker["received"] for worker in dataplane["workers"]]
    ports = dataplane["ports"]
    modes = {f"{port['driver']} {port['xdp']} {'zero-copy' if port['zeroCopy'] else 'copy'}" for port in ports}
    detail = f"{sent} sent in {FLOWS} flows, {got} arrived; workers took in {shares}; {', '.join(sorted(modes))}"
    if got != sent:
        raise Failed(f"{detail}; frames {dataplane['frames']}")
    if min(shares) == 0:
        raise Failed(f"{detail}: a worker had nothing to do")
    return detail


def denied(gateway, mac):
    """No denied packet arrives, and each is counted with its reason."""
    before = gateway.status()["dataplane"]["frames"]["dropped"]
    sent = sent_by_pktgen(mac, DENIED_PORT)
    dropped = settled(lambda: gateway.status()["dataplane"]["frames"]["dropped"]) - before
    got, drops = arrived(DENIED_PORT), gateway.status()["dataplane"]["drops"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in drops.items() if count)
    detail = f"{sent} sent, {got} arrived, {dropped} dropped; all drops: {reasons}"
    if got != 0 or dropped != sent:
        raise Failed(detail)
    return detail


def killed(gateway, mac):
    """A dataplane that is killed lets nothing denied pass, and its successor forwards again."""
    dataplane = gateway.status()["dataplane"]["pid"]
    os.kill(dataplane, 9)
    sent = sent_by_pktgen(mac, DENIED_PORT)
    until = time.monotonic() + PATIENCE
    while not gateway.ready() or gateway.status()["dataplane"]["pid"] == dataplane:
        if time.monotonic() > until:
            raise Failed("no new dataplane was ready")
        time.sleep(1)
    if arrived(DENIED_PORT) != 0:
        raise Failed(f"{arrived(DENIED_PORT)} of {sent} denied packets arrived")
    return f"none of {sent} denied packets arrived; afterwards {passes(gateway, mac)}"


def base(name):
    """What both configurations share."""
    return {
        "apiVersion": "ringwall.io/v1alpha1",
        "kind": "Gateway",
        "name": name,
        "mode": "enforce",
        "cluster": {"podCIDRs": ["10.244.0.0/16"]},
        "source": {"manifests": MANIFESTS},
        "workers": {"cpus": "2-3", "idlePolicy": "adaptive"},
        "interfaces": [
            {"name": "outside", "side": "outside", "rxQueues": SETTINGS["queues"], "zeroCopy": "prefer"},
            {"name": "inside", "side": "inside", "rxQueues": SETTINGS["queues"], "zeroCopy": "prefer"},
        ],
        "conntrack": {"maxEntries": 65536},
    }


def gateway_checks(name, config, mac):
    """All checks of one kind of gateway."""
    started = []

    def start():
        started.append(Gateway(name, config))
        return "ready"

    if not checked(f"{name}: starts", start):
        return
    (gateway,) = started
    checked(f"{name}: allowed packets arrive", passes, gateway, mac)
    checked(f"{name}: denied packets drop", denied, gateway, mac)
    checked(f"{name}: a killed dataplane is replaced", killed, gateway, mac)
    checked(f"{name}: stops and leaves nothing", lambda: gateway.stop() or "detached")


def wire():
    """Transparent: both ends ask for each other's neighbours as if nothing were between them."""
    for namespace, port, address in (("clients", "gen", f"{CLIENT}/16"), ("servers", "sink", f"{SERVER}/16")):
        run("ip", "-n", namespace, "address", "add", address, "dev", port)
        run("ip", "-n", namespace, "route", "add", "default", "dev", port)
    config = base("wire")
    config["wires"] = [{"name": "w0", "interfaces": ["outside", "inside"], "failMode": "closed"}]
    gateway_checks("wire", config, SETTINGS["ports"]["sink"])


def routed():
    """A router between two networks; the server's neighbour is asked for by ARP."""
    for port, address in (("outside", "198.18.255.1/16"), ("inside", "10.244.255.1/16")):
        run("ip", "address", "add", address, "dev", port)
        run("ip", "link", "set", port, "up")
    for namespace, port in (("clients", "gen"), ("servers", "sink")):
        run("ip", "-n", namespace, "address", "flush", "dev", port)
    run("ip", "-n", "clients", "address", "add", f"{CLIENT}/16", "dev", "gen")
    run("ip", "-n", "servers", "address", "add", f"{SERVER}/16", "dev", "sink")
    run("ip", "-n", "servers", "route", "replace", "default", "via", "10.244.255.1")
    run("ip", "-n", "clients", "route", "replace", "default", "via", "198.18.255.1")
    sysctl("net/ipv4/ip_forward", 1)
    gateway_checks("routed", base("routed"), SETTINGS["ports"]["outside"])


def test(command):
    """A test program that was built with the binary."""
    name, *arguments = shlex.split(command)
    folder = os.path.join(os.path.dirname(SETTINGS["ringwall"]), "deps")
    found = [path for path in glob.glob(f"{folder}/{name}-*") if os.path.splitext(path)[1] == ""]
    if not found:
        raise Failed(f"there is no {name} in {folder}: build it by `cargo test --no-run --test {name}`")
    # These kernels have every kind of tunnel.
    environment = {**os.environ, "REQUIRE_ROOT": "1", "REQUIRE_TUNNELS": "1"}
    with open(f"{OUT}/{name}.log", "a+", encoding="utf-8") as log:
        begin = log.tell()
        program = [max(found, key=os.path.getmtime), *arguments]
        result = subprocess.run(program, stdout=log, stderr=log, check=False, env=environment)
        log.seek(begin)
        said = log.read()
    summary = [line for line in said.splitlines() if line.startswith("test result")]
    if result.returncode != 0 or not summary:
        raise Failed(said[-1500:])
    return summary[-1]


def main():
    """All checks, in turn."""
    if checked("virtio_net ports are there", prepare):
        if SETTINGS["traffic"]:
            wire()
            routed()
        for command in SETTINGS["tests"]:
            checked(f"test {command}", test, command)
    open(f"{OUT}/done", "w", encoding="ascii").close()


try:
    main()
finally:
    os.sync()
    # LINUX_REBOOT_CMD_POWER_OFF
    ctypes.CDLL(None).reboot(0x4321FEDC)
