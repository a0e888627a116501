#!/usr/bin/env python3
"""Proves that the profiles make the packets that they say.

TRex's own client library loads each profile. What its field engine would send is written as pcap and read
back by another parser (dpkt): sizes, addresses, ports, checksums, the number of flows, and that what one end
sends is what the other answers. With --ringwall, ringwall's parser reads the captures too, and with --send (root)
they cross a wire of a running ringwall in namespaces.

    bench/trex/check.py --trex /opt/trex/scripts
    sudo bench/trex/check.py --trex /opt/trex/scripts --ringwall target/release/ringwall --send
"""

import argparse
import base64
import contextlib
import ctypes
import importlib.util
import inspect
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import addresses
import engine

PACKETS = 20_000


class Case:
    """A profile with tunables, and what it is to send."""

    def __init__(self, profile, tunables, flows, sizes, protocol, port, answers, allowed=True):
        self.profile, self.tunables = profile, tunables
        self.flows, self.sizes = flows, sizes
        self.protocol, self.port, self.answers, self.allowed = protocol, port, answers, allowed

    def __str__(self):
        return " ".join([self.profile, *self.tunables])


UDP, TCP = 17, 6


def cases():
    """All of them. Flows: how many different ones in PACKETS packets; None where sources are random."""
    for size in addresses.SIZES:
        yield Case("flows.py", ["--size", str(size)], 1000, {size}, UDP, addresses.UDP_PORT, True)
    imix = {size for size, _ in addresses.IMIX}
    yield Case("flows.py", ["--size", "imix"], 1000, imix, UDP, addresses.UDP_PORT, True)
    yield Case("flows.py", ["--size", "imix", "--family", "6"], 1000, {66, 594, 1518}, UDP, addresses.UDP_PORT, True)
    for flows in (1, 7, 250, 12_345):
        yield Case("flows.py", ["--flows", str(flows)], flows, {64}, UDP, addresses.UDP_PORT, True)
    yield Case("flows.py", ["--flows", "500", "--order", "random"], 500, {64}, UDP, addresses.UDP_PORT, True)
    yield Case("flows.py", ["--flows", "1000000"], PACKETS, {64}, UDP, addresses.UDP_PORT, True)
    yield Case("new_flows.py", [], PACKETS, {64}, UDP, addresses.UDP_PORT, False)
    yield Case("new_flows.py", ["--family", "6"], PACKETS, {66}, UDP, addresses.UDP_PORT, False)
    yield Case("syn_flood.py", [], None, {64}, TCP, addresses.TCP_PORT, False)
    yield Case("syn_flood.py", ["--port", "denied"], None, {64}, TCP, addresses.DENIED_PORT, False, allowed=False)


def load_trex(scripts):
    """TRex's client library, out of its `scripts` folder."""
    library = os.path.join(scripts, "automation/trex_control_plane/interactive")
    if not os.path.isdir(os.path.join(library, "trex")):
        sys.exit(f"{scripts}: no TRex there (automation/trex_control_plane/interactive/trex is missing)")
    sys.path.insert(0, library)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import trex.stl.api  # noqa: F401, its own scapy and dpkt are found from here on


def streams(case, direction):
    """A profile's streams, as the client library would hand them to a server: shares and packets."""
    from trex.stl.api import STLProfile

    profile = STLProfile.load_py(
        os.path.join(HERE, case.profile), direction=direction, port_id=direction, tunables=case.tunables
    )
    out = []
    for stream in profile.get_streams():
        sent = stream.to_json()
        template = base64.b64decode(sent["packet"]["binary"])
        out.append((sent["mode"]["rate"]["value"], template, sent["vm"]["instructions"]))
    return out


def packets(case, direction):
    """PACKETS packets of a profile, each stream by its share."""
    all_streams = streams(case, direction)
    shares = sum(share for share, _, _ in all_streams)
    for share, template, instructions in all_streams:
        yield from engine.run(template, instructions, int(PACKETS * share / shares))


def write_pcap(path, frames):
    """A capture of Ethernet frames."""
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for number, frame in enumerate(frames):
            file.write(struct.pack("<IIII", number // 1_000_000, number % 1_000_000, len(frame), len(frame)) + frame)


def read_flows(path):
    """Of a capture, by dpkt: the flows, the sizes on the wire; wrong checksums fail."""
    import dpkt

    flows, sizes = set(), set()
    with open(path, "rb") as file:
        for _, frame in dpkt.pcap.Reader(file):
            sizes.add(len(frame) + addresses.FCS)
            packet = dpkt.ethernet.Ethernet(frame).data
            family = socket.AF_INET if isinstance(packet, dpkt.ip.IP) else socket.AF_INET6
            protocol = packet.p if family == socket.AF_INET else packet.nxt
            again = type(packet)(bytes(packet))
            again.data.sum = 0
            if family == socket.AF_INET:
                again.sum = 0
            bytes(again)  # dpkt fills them in, but for UDP's 0, which is sent as 0xffff
            layer4 = again.data.sum or (0xFFFF if protocol == UDP else 0)
            assert layer4 == packet.data.sum, "the checksum of layer 4 is wrong"
            assert family == socket.AF_INET6 or again.sum == packet.sum, "the checksum of IPv4 is wrong"
            src, dst = (socket.inet_ntop(family, end) for end in (packet.src, packet.dst))
            flows.add((src, dst, protocol, packet.data.sport, packet.data.dport))
    return flows, sizes


def turned_round(flows):
    """What answers these."""
    return {(dst, src, protocol, dport, sport) for src, dst, protocol, sport, dport in flows}


def check(case, folder):
    """One profile; returns its captures."""
    captures = []
    for direction in (0, 1):
        path = os.path.join(folder, f"{direction}.pcap")
        write_pcap(path, packets(case, direction) if direction == 0 or case.answers else [])
        captures.append(path)
    flows, sizes = read_flows(captures[0])
    assert sizes == case.sizes, f"sizes {sorted(sizes)}"
    if case.flows is None:
        assert len(flows) > PACKETS * 0.99, f"{len(flows)} flows of random sources"
    else:
        assert len(flows) == case.flows, f"{len(flows)} flows"
    assert {flow[2] for flow in flows} == {case.protocol}
    assert {flow[4] for flow in flows} == {case.port}
    answers, _ = read_flows(captures[1])
    if case.answers:
        if "random" in case.tunables:
            assert len(answers) == case.flows
        else:
            assert answers == turned_round(flows), "the answers are of other flows"
    else:
        assert not streams(case, 1), "nothing is to come back"
    return captures, flows


def check_connections():
    """The ASTF profile."""
    from trex.astf.api import ASTFProfile  # noqa: F401, fails where the library is not whole

    spec = importlib.util.spec_from_file_location("connections", os.path.join(HERE, "connections.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    said = module.register().get_profile(tunables=["--request", "100", "--answer", "5000"]).to_json()
    template = said["templates"][0]
    assert template["client_template"]["port"] == addresses.TCP_PORT
    client, server = (program["commands"] for program in said["program_list"])
    assert [step["name"] for step in client] == ["tx", "rx"], client
    assert [step["name"] for step in server] == ["rx", "tx"], server
    assert (client[1]["min_bytes"], server[0]["min_bytes"]) == (5000, 100)
    sent = [len(base64.b64decode(said["buf_list"][program[at]["buf_index"]])) for program, at in ((client, 0), (server, 1))]
    assert sent == [100, 5000], sent
    ranges = [said["ip_gen_dist_list"][end["index"]] if "index" in end else end for end in template["client_template"]["ip_gen"].values() if isinstance(end, dict)]
    assert any(it.get("ip_start") == addresses.client(1) for it in ranges), ranges
    assert any(it.get("ip_end") == addresses.server(addresses.SERVERS) for it in ranges), ranges


class Ports:
    """In place of a TRex server: takes the calls that the client library has, and forwards up to a limit."""

    def __init__(self, limit):
        from trex.stl.api import STLClient

        self.limit, self.library, self.sent = limit, STLClient, 0

    def __getattr__(self, name):
        signature = inspect.signature(getattr(self.library, name))

        def call(*arguments, **named):
            signature.bind(self, *arguments, **named)  # as the library takes it
            return getattr(self, "do_" + name, lambda **_: None)(**named)

        return call

    def do_start(self, ports, mult, duration, **_):
        assert mult.endswith("pps"), mult
        rate = float(mult[:-3]) * len(ports)
        self.sent, self.received = int(rate * duration), int(min(rate, self.limit) * duration)

    def do_get_stats(self):
        halves = [{"opackets": self.sent // 2, "ipackets": self.received // 2} for _ in (0, 1)]
        return dict(enumerate(halves))


def check_search():
    """The search, with the library's calls as they are."""
    import ndr
    import search

    case = Case("flows.py", [], 1000, {64}, UDP, addresses.UDP_PORT, True)
    from trex.stl.api import STLProfile

    path = os.path.join(HERE, case.profile)
    ends = [STLProfile.load_py(path, direction=port, port_id=port, tunables=[]).get_streams() for port in (0, 1)]
    generator = ndr.Generator(Ports(2.5e6), ends, None)
    found = search.Search(generator.trial, 1e4, 29.76e6).find(search.NDR)
    assert found.lower.load <= 2.5e6 < found.upper.load * 1.001, found
    assert found.upper.load - found.lower.load <= search.NDR.width * found.upper.load, found


def manifests(folder):
    """The lab's cluster with ten policies."""
    subprocess.run([sys.executable, os.path.join(HERE, "../lab/cluster.py"), "--policies", "10", "--out", folder], check=True)
    return folder


def check_parser(ringwall, cluster, captures, flows):
    """Ringwall's parser finds the same flows."""
    command = [ringwall, "diff", "--from", cluster, "--to", cluster, "--pcap", captures[0], "-o", "json"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    summary = json.loads(said.splitlines()[-1])["summary"]
    assert summary["flows"] == len(flows), summary
    assert summary["packets"]["read"] >= PACKETS * 0.99, summary
    assert summary["packets"]["unparsable"] == summary["packets"]["truncated"] == 0, summary


def enter(namespace):
    """Moves this thread into a network namespace."""
    net = 0x40000000  # CLONE_NEWNET; Python has os.setns from 3.12 on
    if ctypes.CDLL(None, use_errno=True).setns(namespace, net) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Wire:
    """A wire of a running ringwall between two namespaces."""

    def __init__(self, ringwall, cluster):
        self.ringwall, self.cluster = ringwall, cluster
        self.names = [f"rw-lab-{os.getpid()}-{end}" for end in ("clients", "gateway", "servers")]

    def ip(self, *arguments):
        subprocess.run(["ip", *arguments], check=True)

    def __enter__(self):
        self.undo = contextlib.ExitStack()
        try:
            self.start()
        except BaseException:
            self.undo.close()
            raise
        return self

    def start(self):
        """Namespaces, the wire, and ringwall on it."""
        clients, gateway, servers = self.names
        for name in self.names:
            self.ip("netns", "add", name)
            self.undo.callback(self.ip, "netns", "del", name)
        for name, inner in ((clients, "left"), (servers, "right")):
            self.ip("-n", gateway, "link", "add", inner, "up", "type", "veth", "peer", "name", "eth0", "netns", name)
            self.ip("-n", name, "link", "set", "eth0", "up")
        folder = self.undo.enter_context(tempfile.TemporaryDirectory())
        self.config = os.path.join(folder, "ringwall.yaml")
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(LAB_CONFIG.format(folder=folder, cluster=self.cluster, name=f"lab{os.getpid()}"))
        self.log = open(os.path.join(folder, "log"), "w+", encoding="utf-8")
        command = ["ip", "netns", "exec", gateway, self.ringwall, "run", "--config", self.config]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        self.undo.callback(self.stop)
        deadline = time.monotonic() + 60
        while subprocess.run(["ip", "netns", "exec", gateway, self.ringwall, "status", "--config", self.config], capture_output=True).returncode:
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.log.seek(0)
                sys.exit(f"ringwall does not start:\n{self.log.read()}")
            time.sleep(0.1)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        gateway = self.names[1]
        subprocess.run(["ip", "netns", "exec", gateway, self.ringwall, "detach", "--config", self.config], check=True, capture_output=True)

    def __exit__(self, *_):
        self.undo.close()

    def raw(self, name):
        """A socket for frames in a namespace."""
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            with open(f"/run/netns/{name}", "rb") as there:
                enter(there.fileno())
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            made.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
            made.bind(("eth0", 0))
            made.setblocking(False)
            return made
        finally:
            enter(home)
            os.close(home)

    def cross(self, path, direction):
        """Sends a capture's frames from an end, in step with what arrives; counts those that come out as they were."""
        import dpkt

        ends = [self.names[0], self.names[2]]
        sender, receiver = (self.raw(name) for name in (ends if direction == 0 else ends[::-1]))
        with contextlib.closing(sender), contextlib.closing(receiver), open(path, "rb") as file:
            frames = [frame for _, frame in dpkt.pcap.Reader(file)][:2000]
            # Ethernet addresses of the template are zero, which no card would send.
            frames = [b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01" + frame[12:] for frame in frames]
            wanted, arrived = set(frames), 0
            for start in range(0, len(frames), 100):
                for frame in frames[start : start + 100]:
                    sender.send(frame)
                quiet = time.monotonic() + 0.3
                due = min(start + 100, len(frames))
                while time.monotonic() < quiet and arrived < due:
                    try:
                        frame, origin = receiver.recvfrom(65535)
                    except BlockingIOError:
                        time.sleep(0.001)
                        continue
                    arrived += frame in wanted and origin[2] != 4  # not what this end sends itself
        return len(frames), arrived


LAB_CONFIG = """apiVersion: ringwall.io/v1alpha1
kind: Gateway
name: {name}
mode: enforce
runtimeDir: {folder}/run
stateDir: {folder}/state
cluster: {{podCIDRs: [10.244.0.0/16, "fd44::/64"]}}
source: {{manifests: {cluster}}}
workers: {{cpus: "0"}}
interfaces:
  - {{name: left, side: outside}}
  - {{name: right, side: inside}}
wires:
  - {{name: w0, interfaces: [left, right], failMode: closed}}
telemetry: {{metricsListen: "127.0.0.1:0"}}
conntrack: {{maxEntries: 100000}}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trex", required=True, metavar="DIR", help="the folder `scripts` of TRex")
    parser.add_argument("--ringwall", metavar="FILE", help="the program; its parser reads the captures too")
    parser.add_argument("--send", action="store_true", help="send the captures through a running ringwall (root)")
    args = parser.parse_args()
    if args.send and not args.ringwall:
        parser.error("--send takes --ringwall")
    load_trex(args.trex)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        cluster = manifests(os.path.join(folder, "cluster"))
        wire = stack.enter_context(Wire(args.ringwall, cluster)) if args.send else None
        for case in cases():
            captures, flows = check(case, folder)
            said = f"{len(flows)} flows"
            if args.ringwall:
                check_parser(args.ringwall, cluster, captures, flows)
                said += ", the same to ringwall"
            for direction, path in enumerate(captures) if wire else ():
                if direction == 1 and not case.answers:
                    continue
                sent, arrived = wire.cross(path, direction)
                assert arrived == (sent if case.allowed else 0), f"{arrived} of {sent} came out"
                said += f", {arrived} of {sent} {'answers ' if direction else ''}through a wire"
            print(f"{case}: {said}")
        check_connections()
        print("connections.py: as said")
        check_search()
        print("ndr.py: finds the limit of a device that forwards 2.5 million packets a second")


if __name__ == "__main__":
    main()
