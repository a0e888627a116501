//! Route and send: where a packet goes that may pass, across a wire or by routes and neighbours.

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
    port::{Port, PortId, PortKind},
    verdict::DropReason,
    wire::{Packet, checksum},
};

use super::{Ahead, TurnOf};

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

/// The way that a packet leaves by.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// Across the wire, to this port.
    Across(PortId),
    /// Out of a port, to a station on it.
    Hop {
        port: PortId,
        /// Of the station and of the port.
        macs: [[u8; 6]; 2],
        /// Whether the hop counts: what is of this machine, or for it, is not routed.
        counts: bool,
    },
    /// It has to wait until the next hop's Ethernet address is known.
    Wait(ResolveRequest),
}

impl Way {
    /// The port that it leads out of.
    #[inline]
    pub(super) fn out(self) -> PortId {
        match self {
            Self::Across(port) | Self::Hop { port, .. } => port,
            Self::Wait(to) => to.port,
        }
    }
}

/// Why no way leads on, and what the sender is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoWay {
    reason: DropReason,
    problem: Option<Problem>,
    /// A neighbour that may be there by now: the kernel does not look again by itself.
    look_again: Option<ResolveRequest>,
}

impl From<DropReason> for NoWay {
    fn from(reason: DropReason) -> Self {
        Self {
            reason,
            problem: None,
            look_again: None,
        }
    }
}

impl NoWay {
    fn told(reason: DropReason, problem: Problem) -> Self {
        Self {
            problem: Some(problem),
            ..reason.into()
        }
    }

    fn absent(look_again: Option<ResolveRequest>) -> Self {
        Self {
            look_again,
            ..Self::told(DropReason::NeighbourUnresolved, Problem::HostUnreachable)
        }
    }
}

impl<Io: PacketIo> TurnOf<'_, Io> {
    /// The way of a packet that may pass.
    #[inline(always)]
    pub(super) fn route(&self, packet: &Packet, port: &Port, hash: KeyHash) -> Result<Way, NoWay> {
        match port.kind {
            PortKind::Wire { peer } => match self.port(peer) {
                None => Err(DropReason::PortUnavailable.into()),
                Some(out) if packet.total_length() > out.mtu => Err(DropReason::TooBig.into()),
                Some(_) => Ok(Way::Across(peer)),
            },
            PortKind::Pod | PortKind::Uplink | PortKind::Host => self.route_by_table(packet, port, hash),
        }
    }

    fn route_by_table(&self, packet: &Packet, port: &Port, hash: KeyHash) -> Result<Way, NoWay> {
        let forwarding = self.forwarding.ok_or(DropReason::NoRoute)?;
        if is_link_local(packet) {
            return Err(DropReason::MartianAddress.into());
        }
        // All fragments of a datagram go one way, so ports do not count for them.
        let hops = if packet.fragment.is_some() {
            hash.pair as u32
        } else {
            hash.directed as u32
        };
        let refused = |problem| Err(NoWay::told(DropReason::RouteRefused, problem));
        match forwarding.route(packet.dst, hops) {
            Path::Hop { port: out, neighbour } => {
                let to = ResolveRequest {
                    port: out,
                    addr: neighbour,
                };
                self.next_hop(packet, port, to)
            }
            Path::Local => self.to_host(packet, port),
            Path::Blackhole => Err(DropReason::RouteRefused.into()),
            Path::Unreachable => refused(Problem::NoRoute),
            Path::Prohibit => refused(Problem::Prohibited),
            Path::NoRoute => Err(NoWay::told(DropReason::NoRoute, Problem::NoRoute)),
        }
    }

    /// To this host's kernel. It is the packet's destination, so that the hop is not counted.
    fn to_host(&self, packet: &Packet, port: &Port) -> Result<Way, NoWay> {
        let host = self
            .forwarding
            .and_then(|forwarding| forwarding.host())
            .and_then(|(id, mac)| Some((self.port(id)?, mac)));
        match host {
            Some((host, _)) if host.id != port.id && packet.total_length() > host.mtu => {
                Err(NoWay::told(DropReason::TooBig, Problem::TooBig(host.mtu)))
            }
            Some((host, mac)) if host.id != port.id => Ok(Way::Hop {
                port: host.id,
                macs: [mac, host.mac],
                counts: false,
            }),
            _ => Err(DropReason::PortUnavailable.into()),
        }
    }

    fn next_hop(&self, packet: &Packet, port: &Port, to: ResolveRequest) -> Result<Way, NoWay> {
        let out = self
            .port(to.port)
            .filter(|out| out.id != port.id && !matches!(out.kind, PortKind::Wire { .. }))
            .ok_or(DropReason::PortUnavailable)?;
        // What comes by the host port is this host's own: it leaves with the TTL that the kernel gave it.
        let counts = port.kind != PortKind::Host;
        if counts && packet.ttl <= 1 {
            return Err(NoWay::told(DropReason::TtlExceeded, Problem::TimeExceeded));
        }
        if packet.total_length() > out.mtu {
            return Err(NoWay::told(DropReason::TooBig, Problem::TooBig(out.mtu)));
        }
        let neighbour = self
            .forwarding
            .and_then(|forwarding| forwarding.neighbour(to.port, to.addr));
        match neighbour {
            Some(Neighbour::Reachable(mac)) => Ok(Way::Hop {
                port: out.id,
                macs: [mac, out.mac],
                counts,
            }),
            Some(Neighbour::Failed) => Err(NoWay::absent(Some(to))),
            None if self.holds.is_absent(to, self.now) => Err(NoWay::absent(None)),
            None => Ok(Way::Wait(to)),
        }
    }

    /// Sends a packet on its way.
    #[inline(always)]
    pub(super) fn transmit(&mut self, mut frame: Frame, packet: &Packet, port: &Port, way: Way) {
        if port.partial_checksums && checksum::complete_partial(frame.bytes_mut(), packet) {
            self.stats.counters.checksums_completed.add(1);
        }
        let out = match way {
            Way::Across(peer) => peer,
            Way::Hop {
                port,
                macs: [to, from],
                counts,
            } => {
                if counts {
                    rewrite::decrement_ttl(frame.bytes_mut(), packet);
                }
                rewrite::ethernet(frame.bytes_mut(), to, from);
                port
            }
            Way::Wait(_) => return self.discard(frame, DropReason::NeighbourUnresolved), // it waits before that
        };
        self.send(out, frame);
    }

    /// Copies a packet aside and asks for its next hop. Nothing is remembered of it: when it goes on, it is judged anew.
    #[cold]
    pub(super) fn wait(&mut self, frame: Frame, packet: &Packet, port: &Port, to: ResolveRequest) {
        let Hold { kept, ask, gave_way } = self.holds.hold(frame.bytes(), to, port, packet.src, self.now);
        if ask {
            // A full queue asks for others already; this one is asked for again in a while.
            let _ = self.shared.resolve.push(to);
        }
        if let Some(ingress) = gave_way {
            self.count_drop(ingress, DropReason::NeighbourUnresolved);
        }
        self.stats.counters.held.set(self.holds.len() as u64);
        if kept {
            self.io.release(frame);
        } else {
            self.lose(frame, packet, port, DropReason::NeighbourUnresolved);
        }
    }

    /// Sends the packets whose next hop is known by now, as they came: through all stages. Drops those that have waited
    /// too long.
    #[cold]
    pub(super) fn release_held(&mut self) {
        let Some(forwarding) = self.forwarding else {
            return;
        };
        let known = |to: &ResolveRequest| forwarding.neighbour(to.port, to.addr);
        while let Some(held) = self.holds.next(self.now, known) {
            let (ingress, resolved) = (held.ingress, held.resolved);
            let length = held.bytes().len();
            let Some(mut frame) = self.io.allocate() else {
                self.count_drop(ingress, DropReason::PoolEmpty);
                continue;
            };
            if !frame.set_len(length) {
                self.count_drop(ingress, DropReason::PoolEmpty);
                self.io.release(frame);
                continue;
            }
            frame.bytes_mut().copy_from_slice(held.bytes());
            frame.set_port(ingress);
            self.go_on_after_wait(frame, resolved);
        }
        self.stats.counters.held.set(self.holds.len() as u64);
    }

    fn go_on_after_wait(&mut self, frame: Frame, resolved: bool) {
        let mut head = super::Head::BLANK;
        head.course = self.sort(&frame, &mut head);
        let super::Head { packet, hash, .. } = head;
        match (self.port(frame.port()), head.course) {
            // This worker held it, so the shard is its own.
            (Some(_), super::Course::Own) if resolved => self.packet(frame, &packet, hash, Ahead::AFTER_WAIT),
            (Some(port), super::Course::Own) => {
                self.refuse(frame, &packet, port, NoWay::absent(None));
            }
            _ => self.discard(frame, DropReason::NeighbourUnresolved),
        }
    }

    /// Drops a packet that no way leads on for, and tells its sender why, if the rate allows.
    #[cold]
    pub(super) fn refuse(&mut self, frame: Frame, packet: &Packet, port: &Port, why: NoWay) {
        let now = self.now;
        if let Some(to) = why.look_again
            && self.holds.may_ask(now)
        {
            let _ = self.shared.resolve.push(to);
        }
        if let Some(problem) = why.problem
            && icmp::may_answer(packet)
            && self.icmp_sent.of(self.account_behind(packet.src, port)).take(now)
            && let Some(forwarding) = self.forwarding
            && let Some(error) = icmp_error(self.io, forwarding, frame.bytes(), packet, port, problem)
        {
            self.stats.counters.generated.add(1);
            self.stats.counters.icmp_sent.add(1);
            self.send(port.id, error);
        }
        self.lose(frame, packet, port, why.reason);
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
