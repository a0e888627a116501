"""What TRex's field engine does to a packet, as far as the lab's profiles use it: written from the meaning of
its instructions, to check what profiles send without a TRex server."""

import random
import struct

MASKS = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF}
FORMATS = {1: "!B", 2: "!H", 4: "!I"}


class Counter:
    """`flow_var`: a number that goes round, or any of a range each time."""

    def __init__(self, step, chooser):
        self.size, self.first, self.last = step["size"], step["min_value"], step["max_value"]
        self.step, self.chooser = step["step"], chooser
        self.random = step["op"] == "random"
        if step["op"] not in ("inc", "random"):
            raise ValueError(f"a variable that goes {step['op']} is not known")
        self.value = step["init_value"]

    def next(self):
        """To the next packet."""
        if self.random:
            self.value = self.chooser.randint(self.first, self.last)
            return
        self.value += self.step
        if self.value > self.last:
            self.value = self.first + (self.value - self.last - 1)


class Tuple:
    """`tuple_flow_var`: an address, and a port that counts when the addresses have gone round."""

    def __init__(self, step):
        self.first_ip, self.last_ip = step["ip_min"], step["ip_max"]
        self.first_port, self.last_port = step["port_min"], step["port_max"]
        self.limit = step["limit_flows"]
        self.reset()

    def reset(self):
        """To the first flow."""
        self.ip, self.port, self.flow = self.first_ip, self.first_port, 1

    def next(self):
        """To the next packet."""
        if self.limit and self.flow == self.limit:
            return self.reset()
        self.flow += 1
        self.ip += 1
        if self.ip > self.last_ip:
            self.ip = self.first_ip
            self.port = self.first_port if self.port == self.last_port else self.port + 1


def checksum(data):
    """The internet's (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def fix_checksums(packet, l2, l3):
    """Those of IPv4, and of UDP or TCP."""
    start = l2 + l3
    if packet[l2] >> 4 == 4:
        packet[l2 + 10 : l2 + 12] = b"\0\0"
        packet[l2 + 10 : l2 + 12] = struct.pack("!H", checksum(bytes(packet[l2:start])))
        length = struct.unpack_from("!H", packet, l2 + 2)[0] - l3
        protocol, ends = packet[l2 + 9], bytes(packet[l2 + 12 : l2 + 20])
    else:
        length = struct.unpack_from("!H", packet, l2 + 4)[0]
        protocol, ends = packet[l2 + 6], bytes(packet[l2 + 8 : l2 + 40])
    at = start + {6: 16, 17: 6}[protocol]
    packet[at : at + 2] = b"\0\0"
    pseudo = ends + struct.pack("!IHBB", length, 0, 0, protocol)
    found = checksum(pseudo + bytes(packet[start : start + length]))
    packet[at : at + 2] = struct.pack("!H", found or 0xFFFF if protocol == 17 else found)


def run(template, instructions, count, seed=1):
    """The first `count` packets of a stream."""
    chooser = random.Random(seed)
    variables, writes, fix = {}, [], None
    for step in instructions:
        kind = step["type"]
        if kind == "flow_var":
            variables[step["name"]] = Counter(step, chooser)
        elif kind == "tuple_flow_var":
            variables[step["name"]] = Tuple(step)
        elif kind == "write_flow_var":
            writes.append(step)
        elif kind == "fix_checksum_hw":
            fix = step
        else:
            raise ValueError(f"the instruction {kind} is not known")
    for _ in range(count):
        packet = bytearray(template)
        for step in writes:
            name, _, part = step["name"].partition(".")
            variable = variables[name]
            size = {"ip": 4, "port": 2}[part] if part else variable.size
            value = getattr(variable, part) if part else variable.value
            value = (value + step["add_value"]) & MASKS[size]
            struct.pack_into(FORMATS[size], packet, step["pkt_offset"], value)
        if fix:
            fix_checksums(packet, fix["l2_len"], fix["l3_len"])
        yield bytes(packet)
        for variable in variables.values():
            variable.next()
