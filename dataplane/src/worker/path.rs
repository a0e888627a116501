//! Where a packet that passes goes: across a wire, or by routes and neighbours.

use crate::{
    flow::hash::KeyHash,
    forward::{
        Neighbour, Path, ResolveRequest,
        hold::Hold,
        icmp::{self, Problem},
        rewrite,
    },
    frame::Frame,
    io::PacketIo,
    port::{Port, PortKind},
    verdict::DropReason,
    wire::{self, Packet, Parsed, checksum},
};

use super::TurnOf;

/// Whether a frame on a routed port is for its router: untagged, to one station, and on an uplink to this one. What
/// the egress guard redirects into the host port bears the address of the pod that the kernel meant.
#[inline]
pub(super) fn is_ours(frame: &[u8], port: &Port) -> bool {
    let Some(header) = frame.first_chunk::<14>() else {
        return false;
    };
    let tagged = !matches!(header[12..], [0x08, 0x00] | [0x86, 0xdd]);
    let group = header[0] & 1 != 0;
    !tagged && !group && (port.kind != PortKind::Uplink || header[..6] == port.mac)
}

impl<Io: PacketIo> TurnOf<'_, Io> {
    /// Sends a packet on that may pass.
    #[inline]
    pub(super) fn forward(&mut self, mut frame: Frame, packet: &Packet, port: &Port, hash: KeyHash) {
        if port.partial_checksums && checksum::complete_partial(frame.bytes_mut(), packet) {
            self.stats.counters.checksums_completed.add(1);
        }
        match port.kind {
            PortKind::Wire { peer } => match self.port(peer) {
                None => self.lose(frame, packet, port, DropReason::PortUnavailable),
                Some(out) if packet.total_length() > out.mtu => {
                    self.lose(frame, packet, port, DropReason::TooBig)
                }
                Some(_) => {
                    self.send(peer, frame);
                }
            },
            PortKind::Pod | PortKind::Uplink | PortKind::Host => self.route(frame, packet, port, hash),
        }
    }

    fn route(&mut self, frame: Frame, packet: &Packet, port: &Port, hash: KeyHash) {
        let Some(forwarding) = self.forwarding else {
            self.lose(frame, packet, port, DropReason::NoRoute);
            return;
        };
        if is_link_local(packet) {
            self.lose(frame, packet, port, DropReason::MartianAddress);
            return;
        }
        // All fragments of a datagram go one way, so ports do not count for them.
        let hops = if packet.fragment.is_some() {
            hash.pair as u32
        } else {
            hash.directed as u32
        };
        match forwarding.route(packet.dst, hops) {
            Path::Hop { port: out, neighbour } => {
                let to = ResolveRequest {
                    port: out,
                    addr: neighbour,
                };
                self.next_hop(frame, packet, port, hash, to);
            }
            Path::Local => self.deliver(frame, packet, port, hash),
            Path::Blackhole => self.lose(frame, packet, port, DropReason::RouteRefused),
            Path::Unreachable => self.refuse(
                frame,
                packet,
                port,
                hash,
                Problem::NoRoute,
                DropReason::RouteRefused,
            ),
            Path::Prohibit => self.refuse(
                frame,
                packet,
                port,
                hash,
                Problem::Prohibited,
                DropReason::RouteRefused,
            ),
            Path::NoRoute => self.refuse(frame, packet, port, hash, Problem::NoRoute, DropReason::NoRoute),
        }
    }

    /// To this host's kernel. It is the packet's destination, so that the hop is not counted.
    fn deliver(&mut self, mut frame: Frame, packet: &Packet, port: &Port, hash: KeyHash) {
        let host = self
            .forwarding
            .and_then(|forwarding| forwarding.host())
            .and_then(|(id, mac)| Some((self.port(id)?, mac)));
        match host {
            Some((host, mac)) if host.id != port.id => {
                if packet.total_length() > host.mtu {
                    let problem = Problem::TooBig(host.mtu);
                    self.refuse(frame, packet, port, hash, problem, DropReason::TooBig);
                    return;
                }
                rewrite::ethernet(frame.bytes_mut(), mac, host.mac);
                self.send(host.id, frame);
            }
            _ => self.lose(frame, packet, port, DropReason::PortUnavailable),
        }
    }

    fn next_hop(
        &mut self,
        mut frame: Frame,
        packet: &Packet,
        port: &Port,
        hash: KeyHash,
        to: ResolveRequest,
    ) {
        let Some(out) = self
            .port(to.port)
            .filter(|out| out.id != port.id && !matches!(out.kind, PortKind::Wire { .. }))
        else {
            self.lose(frame, packet, port, DropReason::PortUnavailable);
            return;
        };
        // What comes by the host port is this host's own: it leaves with the TTL that the kernel gave it.
        let own = port.kind == PortKind::Host;
        if !own && packet.ttl <= 1 {
            let exceeded = DropReason::TtlExceeded;
            self.refuse(frame, packet, port, hash, Problem::TimeExceeded, exceeded);
            return;
        }
        if packet.total_length() > out.mtu {
            let problem = Problem::TooBig(out.mtu);
            self.refuse(frame, packet, port, hash, problem, DropReason::TooBig);
            return;
        }
        let neighbour = self
            .forwarding
            .and_then(|forwarding| forwarding.neighbour(to.port, to.addr));
        if neighbour == Some(Neighbour::Failed) {
            // It may be there by now; the kernel does not look again by itself.
            if self.holds.may_ask(self.now) {
                let _ = self.shared.resolve.push(to);
            }
            let unresolved = DropReason::NeighbourUnresolved;
            self.refuse(frame, packet, port, hash, Problem::HostUnreachable, unresolved);
            return;
        }
        if !own {
            rewrite::decrement_ttl(frame.bytes_mut(), packet);
        }
        match neighbour {
            Some(Neighbour::Reachable(mac)) => {
                rewrite::ethernet(frame.bytes_mut(), mac, out.mac);
                self.send(out.id, frame);
            }
            _ => self.hold(frame, packet, port, to),
        }
    }

    /// Copies a packet aside and asks for its next hop.
    #[cold]
    fn hold(&mut self, frame: Frame, packet: &Packet, port: &Port, to: ResolveRequest) {
        match self.holds.hold(frame.bytes(), to, port.id, self.now) {
            Hold::Kept { ask } => {
                if ask {
                    // A full queue asks for others already; this one is asked for again in a while.
                    let _ = self.shared.resolve.push(to);
                }
                self.stats.counters.held.set(self.holds.len() as u64);
                self.io.release(frame);
            }
            Hold::NoRoom { ask } => {
                if ask {
                    let _ = self.shared.resolve.push(to);
                }
                self.lose(frame, packet, port, DropReason::NeighbourUnresolved);
            }
        }
    }

    /// Sends the packets whose next hop is known by now; drops those that have waited too long.
    #[cold]
    pub(super) fn release_held(&mut self) {
        let Some(forwarding) = self.forwarding else {
            return;
        };
        let known = |to: &ResolveRequest| forwarding.neighbour(to.port, to.addr);
        while let Some((held, neighbour)) = self.holds.next(self.now, known) {
            let (to, ingress) = (held.to, held.ingress);
            let resolved = match (neighbour, forwarding.port(to.port)) {
                (Some(Neighbour::Reachable(mac)), Some(out)) => Some((mac, out)),
                _ => None,
            };
            let Some((mac, out)) = resolved else {
                // The error quotes the packet as it is here, with one hop less than it came with.
                if let (Parsed::Subject(packet), Some(port)) =
                    (wire::parse(held.bytes()), forwarding.port(ingress))
                {
                    let hash = self.seed.key(&packet.owner_key(port.zone));
                    // This worker held it, so the shard is its own.
                    let shard = &mut self.shards[self.owners.place(hash.shard())];
                    if icmp::may_answer(&packet)
                        && shard.icmp_sent.take(self.now)
                        && let Some(error) = icmp_error(
                            self.io,
                            forwarding,
                            held.bytes(),
                            &packet,
                            port,
                            Problem::HostUnreachable,
                        )
                    {
                        self.stats.counters.generated.add(1);
                        self.stats.counters.icmp_sent.add(1);
                        self.send(ingress, error);
                    }
                }
                self.count_drop(ingress, DropReason::NeighbourUnresolved);
                continue;
            };
            let Some(mut frame) = self.io.allocate() else {
                self.count_drop(ingress, DropReason::PoolEmpty);
                continue;
            };
            if !frame.set_len(held.bytes().len()) {
                self.count_drop(ingress, DropReason::PoolEmpty);
                self.io.release(frame);
                continue;
            }
            frame.bytes_mut().copy_from_slice(held.bytes());
            rewrite::ethernet(frame.bytes_mut(), mac, out.mac);
            self.send(out.id, frame);
        }
        self.stats.counters.held.set(self.holds.len() as u64);
    }

    /// Drops a packet and tells its sender why, if the rate allows.
    #[cold]
    fn refuse(
        &mut self,
        frame: Frame,
        packet: &Packet,
        port: &Port,
        hash: KeyHash,
        problem: Problem,
        reason: DropReason,
    ) {
        let now = self.now;
        if icmp::may_answer(packet)
            && self.shard(hash).icmp_sent.take(now)
            && let Some(forwarding) = self.forwarding
            && let Some(error) = icmp_error(self.io, forwarding, frame.bytes(), packet, port, problem)
        {
            self.stats.counters.generated.add(1);
            self.stats.counters.icmp_sent.add(1);
            self.send(port.id, error);
        }
        self.lose(frame, packet, port, reason);
    }
}

/// An ICMP error about a packet, to go back out of the port that it came in on. None where no frame is free, or no
/// address is there to send it from.
fn icmp_error<Io: PacketIo>(
    io: &mut Io,
    forwarding: &crate::forward::Forwarding,
    original: &[u8],
    packet: &Packet,
    port: &Port,
    problem: Problem,
) -> Option<Frame> {
    let source = forwarding.icmp_source(port.id, packet.src.is_v4())?;
    let mut sender = [0; 6];
    sender.copy_from_slice(original.get(6..12)?);
    // Frames that the egress guard redirected bear the Ethernet address of another port.
    let to = match forwarding.host() {
        Some((host, kernel_end)) if host == port.id => kernel_end,
        _ => sender,
    };
    let mut frame = io.allocate()?;
    let fits = frame.set_len(icmp::length(packet))
        && icmp::write(frame.bytes_mut(), original, packet, source, problem);
    if !fits {
        io.release(frame);
        return None;
    }
    rewrite::ethernet(frame.bytes_mut(), to, port.mac);
    Some(frame)
}

/// Addresses that no router forwards (RFC 4291 2.5.6). IPv4's are forwarded by usage: metadata services live there.
#[inline]
fn is_link_local(packet: &Packet) -> bool {
    let is = |addr: crate::addr::Addr| {
        let octets = addr.octets();
        octets[0] == 0xfe && octets[1] & 0xc0 == 0x80
    };
    is(packet.src) || is(packet.dst)
}
