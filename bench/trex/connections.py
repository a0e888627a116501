"""TCP connections from end to end (ASTF): open, a request, an answer, close.

    start -f bench/trex/connections.py -m 10000 -t --request 200 --answer 16384
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from trex.astf.api import (
    ASTFAssociationRule,
    ASTFIPGen,
    ASTFIPGenDist,
    ASTFIPGenGlobal,
    ASTFProfile,
    ASTFProgram,
    ASTFTCPClientTemplate,
    ASTFTCPServerTemplate,
    ASTFTemplate,
)

import addresses


class Connections:
    """One connection a second and multiplier."""

    def get_profile(self, tunables=(), **_):
        parser = addresses.parser(__doc__.splitlines()[0])
        parser.add_argument("--request", type=int, default=200, help="bytes")
        parser.add_argument("--answer", type=int, default=16384, help="bytes")
        args = parser.parse_args(tunables)

        client = ASTFProgram()
        client.send("q" * args.request)
        client.recv(args.answer)
        server = ASTFProgram()
        server.recv(args.request)
        server.send("a" * args.answer)

        def range_of(of, number):
            return ASTFIPGenDist(ip_range=[of(1), of(number)], distribution="seq")

        ends = ASTFIPGen(
            glob=ASTFIPGenGlobal(ip_offset="0.0.1.0"),
            dist_client=range_of(addresses.client, addresses.CLIENTS),
            dist_server=range_of(addresses.server, addresses.SERVERS),
        )
        template = ASTFTemplate(
            client_template=ASTFTCPClientTemplate(program=client, ip_gen=ends, port=addresses.TCP_PORT, cps=1),
            server_template=ASTFTCPServerTemplate(
                program=server, assoc=ASTFAssociationRule(port=addresses.TCP_PORT)
            ),
        )
        return ASTFProfile(default_ip_gen=ends, templates=template)


def register():
    """As TRex finds it."""
    return Connections()
