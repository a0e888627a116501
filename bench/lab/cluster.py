#!/usr/bin/env python3
"""Writes the lab's cluster as a folder of manifests: the servers of bench/trex, and as many policies as wanted.

The first policy lets the clients reach the servers on UDP 9 and TCP 80; every other one selects them too and allows something else.

    bench/lab/cluster.py --policies 1000 --out /etc/ringwall/lab
"""

import argparse
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../trex"))

import addresses


def pod(number):
    """A server."""
    name = f"server-{number}"
    ips = [addresses.server(number), addresses.server(number, 6)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "load", "labels": {"app": "server"}},
        "spec": {"nodeName": "rack", "containers": [{"name": "c", "image": "server"}]},
        "status": {"phase": "Running", "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]},
    }


def policy(name, blocks, ports):
    """Lets some addresses reach all servers on some ports."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "load"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"ipBlock": {"cidr": block}} for block in blocks],
                    "ports": [{"protocol": protocol, "port": port} for protocol, port in ports],
                }
            ],
        },
    }


def cluster(policies):
    """All objects."""
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "load"}}
    yield {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "rack"},
        "spec": {"podCIDRs": ["10.244.0.0/16", "fd44::/64"]},
    }
    yield from (pod(number) for number in range(1, addresses.SERVERS + 1))
    ports = [("UDP", addresses.UDP_PORT), ("TCP", addresses.TCP_PORT)]
    yield policy("clients", ["198.18.0.0/16", "fd18::/64"], ports)
    for number in range(1, policies):
        block = f"203.0.{number >> 8}.{number & 255}/32"
        yield policy(f"other-{number}", [block], [("TCP", 1000 + number % 60000)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", type=int, default=1)
    parser.add_argument("--out", required=True, help="folder, made if it is not there")
    args = parser.parse_args()
    if not 1 <= args.policies <= 60000:
        parser.error("--policies: 1 to 60000")
    os.makedirs(args.out, exist_ok=True)
    objects = {"apiVersion": "v1", "kind": "List", "items": list(cluster(args.policies))}
    with open(os.path.join(args.out, "lab.json"), "w", encoding="utf-8") as file:
        json.dump(objects, file, indent=1)


if __name__ == "__main__":
    main()
