"""UDP flows in both directions: RFC 2544 sizes or IMIX, any number of flows, in order or random.

    start -f bench/trex/flows.py -m 1mpps -t --size 64 --flows 1000
    start -f bench/trex/flows.py -m 10% -t --size imix --flows 1000000 --order random --family 6
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from scapy.all import UDP
from trex_stl_lib.api import STLStream, STLTXCont

import addresses
import packets


class Flows:
    """A stream for each size."""

    def get_streams(self, direction=0, tunables=(), **_):
        parser = addresses.parser(__doc__.splitlines()[0])
        parser.add_argument("--size", default="64", choices=["imix", *map(str, addresses.SIZES)])
        parser.add_argument("--flows", type=addresses.flow_count, default=1000)
        parser.add_argument("--order", default="in-order", choices=["in-order", "random"])
        parser.add_argument("--family", type=int, default=4, choices=[4, 6])
        args = parser.parse_args(tunables)
        mix = addresses.IMIX if args.size == "imix" else ((int(args.size), 1),)
        # IPv6 and UDP take 62 bytes of 60.
        smallest = 64 if args.family == 4 else 66
        layer4 = UDP(sport=addresses.FIRST_PORT, dport=addresses.UDP_PORT)
        return [
            STLStream(
                packet=packets.of_flows(
                    layer4, max(size, smallest), args.flows, args.order, args.family, direction
                ),
                mode=STLTXCont(pps=share),
                isg=10.0 * number,
            )
            for number, (size, share) in enumerate(mix)
        ]


def register():
    """As TRex finds it."""
    return Flows()
