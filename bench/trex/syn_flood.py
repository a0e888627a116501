"""SYNs of forged sources, from the clients' side alone, to a port that policy allows or denies.

    start -f bench/trex/syn_flood.py -p 0 -m 500kpps -t --port allowed
    start -f bench/trex/syn_flood.py -p 0 -m 500kpps -t --port denied
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from scapy.all import TCP
from trex_stl_lib.api import STLPktBuilder, STLStream, STLTXCont, STLVmFlowVar

import addresses
import packets


class SynFlood:
    """One stream; nothing in the other direction."""

    def get_streams(self, direction=0, tunables=(), **_):
        parser = addresses.parser(__doc__.splitlines()[0])
        parser.add_argument("--port", default="allowed", choices=["allowed", "denied"])
        args = parser.parse_args(tunables)
        if direction == 1:
            return []
        port = addresses.TCP_PORT if args.port == "allowed" else addresses.DENIED_PORT
        layer4 = TCP(sport=addresses.FIRST_PORT, dport=port, flags="S", seq=1)
        at = packets.Offsets(4)
        last = packets.low_bits(addresses.server(addresses.SERVERS))
        variables = [
            STLVmFlowVar("ip", min_value="198.18.1.0", max_value="198.18.255.255", size=4, op="random"),
            STLVmFlowVar("port", min_value=addresses.FIRST_PORT, max_value=addresses.LAST_PORT, size=2, op="random"),
            STLVmFlowVar("server", min_value=addresses.server(1), max_value=last, size=4, op="random"),
        ]
        writes = [("ip", at.source), ("port", at.source_port), ("server", at.destination)]
        packet = packets.frame(layer4, 64, 4, 0)
        vm = packets.steps(variables, writes, layer4, 4)
        return [STLStream(packet=STLPktBuilder(pkt=packet, vm=vm), mode=STLTXCont(pps=1))]


def register():
    """As TRex finds it."""
    return SynFlood()
