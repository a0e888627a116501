"""Who talks to whom in the lab: as `bench/lab/cluster.yaml` has it.

Port 0 of TRex is the outside, port 1 the pods' side of the wire."""

import argparse
import math

CLIENTS = 250  # 198.18.0.1 to .250 and fd18::1 to ::fa
SERVERS = 250  # 10.244.0.1 to .250 and fd44::1 to ::fa: pods of namespace `load`
FIRST_PORT, LAST_PORT = 1024, 65535
UDP_PORT, TCP_PORT, DENIED_PORT = 9, 80, 81

# Of RFC 2544, and simple IMIX (7:4:1). Bytes on the wire with the FCS, which the card adds.
SIZES = (64, 128, 256, 512, 1024, 1280, 1518)
IMIX = ((64, 7), (594, 4), (1518, 1))
FCS = 4


def client(number, family=4):
    """Address of a client, from 1."""
    return f"198.18.0.{number}" if family == 4 else f"fd18::{number:x}"


def server(number, family=4):
    """Address of a server, from 1."""
    return f"10.244.0.{number}" if family == 4 else f"fd44::{number:x}"


def parser(description):
    """Of a profile's tunables (`start -f PROFILE -t --flows 1000`)."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def flow_count(text):
    """A number of flows that the lab has addresses and ports for."""
    most = CLIENTS * (LAST_PORT - FIRST_PORT + 1)
    number = int(text)
    if not 1 <= number <= most:
        raise argparse.ArgumentTypeError(f"1 to {most} flows, not {number}")
    return number


def servers_of(flows):
    """How many servers: as many as divide the flows, so that a flow always has the same one."""
    return math.gcd(flows, SERVERS)
