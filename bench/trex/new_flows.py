"""A new UDP flow with each packet, from the clients alone: how many flows a second can begin.

    start -f bench/trex/new_flows.py -p 0 -m 300kpps -t --flows 4000000

After as many as --flows they come again: more than the flow table's idle time takes to forget them
makes each packet a new flow."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from scapy.all import UDP
from trex_stl_lib.api import STLStream, STLTXCont

import addresses
import packets


class NewFlows:
    """One stream; nothing in the other direction."""

    def get_streams(self, direction=0, tunables=(), **_):
        parser = addresses.parser(__doc__.splitlines()[0])
        parser.add_argument("--flows", type=addresses.flow_count, default=4_000_000)
        parser.add_argument("--family", type=int, default=4, choices=[4, 6])
        args = parser.parse_args(tunables)
        if direction == 1:
            return []
        layer4 = UDP(sport=addresses.FIRST_PORT, dport=addresses.UDP_PORT)
        size = 64 if args.family == 4 else 66
        packet = packets.of_flows(layer4, size, args.flows, "in-order", args.family, 0)
        return [STLStream(packet=packet, mode=STLTXCont(pps=1))]


def register():
    """As TRex finds it."""
    return NewFlows()
