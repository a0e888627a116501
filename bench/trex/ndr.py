#!/usr/bin/env python3
"""Searches with TRex for the highest load without loss (NDR) and with 0.5 % (PDR), and measures latency below it.

    bench/trex/ndr.py --trex /opt/trex/scripts --server 192.0.2.7 --profile flows.py -- --size 64 --flows 1000
    bench/trex/ndr.py --trex /opt/trex/scripts --profile flows.py --duration 60 --out imix.json -- --size imix

What comes after -- goes to the profile. Prints a table; --out writes every trial as JSON. Exit status 1: the
lowest load already loses packets, or the highest loses none.
"""

import argparse
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import search

LATENCY_RATE = 1000  # packets a second beside the load; TRex stamps these in software
LATENCY_AT = (0.5, 0.9)  # of NDR
SETTLE = 2.0  # seconds for what is under way


class Generator:
    """A TRex server with its ports 0 and 1 on both ends."""

    def __init__(self, client, streams, latency):
        self.client, self.streams, self.latency = client, streams, latency
        self.ports = [port for port in (0, 1) if streams[port]]

    def load(self, more=None):
        """Gives both ports their streams."""
        self.client.reset(ports=[0, 1])
        self.client.set_port_attr(ports=[0, 1], promiscuous=True)
        for port in self.ports:
            self.client.add_streams(self.streams[port] + (more or []), ports=[port])

    def trial(self, load, duration):
        """Offers `load` packets a second, both directions together."""
        self.load()
        return self.run(load, duration)

    def run(self, load, duration):
        """With the streams that are there."""
        self.client.clear_stats()
        rate = f"{load / len(self.ports):.0f}pps"
        self.client.start(ports=self.ports, mult=rate, duration=duration, force=True)
        self.client.wait_on_traffic(ports=self.ports, timeout=duration + 60, rx_delay_ms=int(SETTLE * 1000))
        stats = self.client.get_stats()
        sent = sum(stats[port]["opackets"] for port in (0, 1))
        received = sum(stats[port]["ipackets"] for port in (0, 1))
        return search.Trial(load, duration, sent, min(sent, received))

    def latency_at(self, load, duration):
        """Latency in microseconds of a stream beside the load."""
        self.load(more=[self.latency])
        self.run(load, duration)
        found = self.client.get_pgid_stats()["latency"][self.latency_id]["latency"]
        return {
            "load": load,
            "average": found["average"],
            "max": found["total_max"],
            "histogram": {str(floor): count for floor, count in sorted(found["histogram"].items())},
            **{name: quantile(found["histogram"], share) for name, share in QUANTILES},
        }

    latency_id = 7


QUANTILES = (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))


def quantile(histogram, share):
    """Upper end of the bucket of TRex's histogram (by powers of ten, nine in each) that holds a share."""
    total, seen = sum(histogram.values()), 0
    for floor in sorted(histogram):
        seen += histogram[floor]
        if seen >= share * total:
            return floor + max(1, 10 ** (len(str(int(floor))) - 1) if floor else 1)
    return None


def connect(args):
    """A generator for the arguments."""
    sys.path.insert(0, os.path.join(args.trex, "automation/trex_control_plane/interactive"))
    try:
        from trex.stl.api import STLClient, STLFlowLatencyStats, STLPktBuilder, STLProfile, STLStream, STLTXCont
    except ImportError as error:
        sys.exit(f"{args.trex}: TRex's client library cannot be loaded: {error}")
    path = os.path.join(HERE, args.profile)
    streams = [
        STLProfile.load_py(path, direction=port, port_id=port, tunables=args.tunables).get_streams()
        for port in (0, 1)
    ]
    from scapy.all import UDP

    import addresses
    import packets

    probe = packets.frame(UDP(sport=addresses.FIRST_PORT - 1, dport=addresses.UDP_PORT), 128, 4, 0)
    latency = STLStream(
        packet=STLPktBuilder(pkt=probe),
        mode=STLTXCont(pps=LATENCY_RATE),
        flow_stats=STLFlowLatencyStats(pg_id=Generator.latency_id),
    )
    client = STLClient(server=args.server)
    client.connect()
    client.acquire(ports=[0, 1], force=True)
    return client, Generator(client, streams, latency)


def words(found):
    """A goal's outcome."""
    goal, lower, upper = found.goal, found.lower, found.upper
    if lower is None:
        return f"{goal.name}: below {upper.load:,.0f} packets/s, the lowest load: {upper.loss:.3%} lost"
    if upper is None:
        return f"{goal.name}: above {lower.load:,.0f} packets/s, the highest load"
    return f"{goal.name}: {lower.load:,.0f} packets/s ({upper.load:,.0f} loses {upper.loss:.3%}), trials of {lower.duration:.0f} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trex", required=True, metavar="DIR", help="the folder `scripts` of TRex")
    parser.add_argument("--server", default="127.0.0.1", metavar="HOST", help="where `t-rex-64 -i` runs")
    parser.add_argument("--profile", default="flows.py", metavar="FILE", help="of this folder")
    parser.add_argument("--least", type=float, default=1e4, metavar="PPS", help="lowest load, both directions together")
    parser.add_argument("--most", type=float, default=29.76e6, metavar="PPS", help="highest load (default: 64 B, 10 Gbit/s, both ways)")
    parser.add_argument("--duration", type=float, default=30.0, metavar="SECONDS", help="of the trials that decide")
    parser.add_argument("--out", metavar="FILE", help="all trials as JSON")
    parser.add_argument("tunables", nargs="*", help="after --: for the profile")
    args = parser.parse_args()
    client, generator = connect(args)
    try:
        looking = search.Search(generator.trial, args.least, args.most)
        goals = [search.Goal(goal.name, goal.loss, duration=args.duration) for goal in (search.NDR, search.PDR)]
        found = [looking.find(goal) for goal in goals]
        for one in found:
            print(words(one))
        latencies = []
        if found[0].lower:
            for share in LATENCY_AT:
                measured = generator.latency_at(found[0].lower.load * share, args.duration)
                latencies.append(measured)
                figures = ", ".join(f"{name} {measured[name]} us" for name, _ in QUANTILES)
                print(f"latency at {share:.0%} of NDR: {figures}")
    finally:
        client.disconnect()
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            trials = [vars(trial) | {"loss": trial.loss} for trial in looking.trials]
            outcome = {
                one.goal.name: {
                    "lower": one.lower.load if one.lower else None,
                    "upper": one.upper.load if one.upper else None,
                }
                for one in found
            }
            said = {"profile": args.profile, "tunables": args.tunables, "found": outcome, "trials": trials}
            json.dump(said | {"latency_us": latencies}, file, indent=1)
    sys.exit(0 if all(one.lower and one.upper for one in found) else 1)


if __name__ == "__main__":
    main()
