"""Packets of the lab for TRex's stateless mode, with a field engine that makes them flows."""

import ipaddress

from scapy.all import IP, TCP, UDP, Ether, IPv6, Raw
from trex_stl_lib.api import (
    STLPktBuilder,
    STLScVmRaw,
    STLVmFixChecksumHw,
    STLVmFlowVar,
    STLVmTupleGen,
    STLVmWrFlowVar,
)

import addresses

L3, IPV4_BYTES, IPV6_BYTES = 14, 20, 40


class Offsets:
    """Where the low 32 bits of addresses, and the ports, are in a frame."""

    def __init__(self, family):
        header = IPV4_BYTES if family == 4 else IPV6_BYTES
        self.l4 = L3 + header
        self.source = L3 + (12 if family == 4 else 20)
        self.destination = L3 + (16 if family == 4 else 36)
        self.source_port, self.destination_port = self.l4, self.l4 + 2


def low_bits(address):
    """The low 32 bits of an address, as text: what the field engine counts with."""
    return str(ipaddress.IPv4Address(int(ipaddress.ip_address(address)) & 0xFFFFFFFF))


def low_range(of, number, family):
    """First and last of some addresses."""
    return low_bits(of(1, family)), low_bits(of(number, family))


def frame(layer4, size, family, direction):
    """A packet between the first client and the first server, `size` bytes on the wire."""
    ends = [addresses.client(1, family), addresses.server(1, family)]
    src, dst = ends if direction == 0 else ends[::-1]
    packet = Ether() / (IP(src=src, dst=dst) if family == 4 else IPv6(src=src, dst=dst)) / layer4
    room = size - addresses.FCS - len(packet)
    if room < 0:
        raise ValueError(f"no room for these headers in {size} bytes: {-room} missing")
    return packet / Raw(b"r" * room)


def steps(variables, writes, layer4, family):
    """A field engine: variables, where they are written, and right checksums."""
    kinds = {TCP: "tcp", UDP: "udp"}
    kind = type(layer4)
    l3 = "IP" if family == 4 else "IPv6"
    fix = STLVmFixChecksumHw(l3_offset=l3, l4_offset=kind.__name__, l4_type=kind_code(kinds[kind]))
    write = [STLVmWrFlowVar(fv_name=name, pkt_offset=offset) for name, offset in writes]
    return STLScVmRaw([*variables, *write, fix])


def kind_code(name):
    """TRex's number for a checksum."""
    from trex_stl_lib.api import CTRexVmInsFixHwCs

    return {"udp": CTRexVmInsFixHwCs.L4_TYPE_UDP, "tcp": CTRexVmInsFixHwCs.L4_TYPE_TCP}[name]


def of_flows(layer4, size, flows, order, family, direction):
    """`flows` flows, each of the same client, port and server in both directions.

    In order, or any of them each time (`random`)."""
    at = Offsets(family)
    client, client_port, server = at.source, at.source_port, at.destination
    if direction == 1:
        client, client_port, server = at.destination, at.destination_port, at.source
        layer4 = layer4.copy()
        layer4.sport, layer4.dport = layer4.dport, layer4.sport
    if order == "in-order":
        clients = low_range(addresses.client, min(flows, addresses.CLIENTS), family)
        servers = low_range(addresses.server, addresses.servers_of(flows), family)
        variables = [
            STLVmTupleGen(
                name="client",
                ip_min=clients[0],
                ip_max=clients[1],
                port_min=addresses.FIRST_PORT,
                port_max=addresses.LAST_PORT,
                limit_flows=flows,
            ),
            STLVmFlowVar("server", min_value=servers[0], max_value=servers[1], size=4, op="inc"),
        ]
        writes = [("client.ip", client), ("client.port", client_port), ("server", server)]
    else:
        # One server: its address would be another independent choice.
        number = addresses.servers_of(flows)
        clients = low_range(addresses.client, number, family)
        last = addresses.FIRST_PORT + flows // number - 1
        if last > addresses.LAST_PORT:
            raise ValueError(f"{flows} flows in random order take a multiple of {addresses.CLIENTS}")
        variables = [
            STLVmFlowVar("ip", min_value=clients[0], max_value=clients[1], size=4, op="random"),
            STLVmFlowVar("port", min_value=addresses.FIRST_PORT, max_value=last, size=2, op="random"),
        ]
        writes = [("ip", client), ("port", client_port)]
    packet = frame(layer4, size, family, direction)
    return STLPktBuilder(pkt=packet, vm=steps(variables, writes, layer4, family))
