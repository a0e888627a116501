//! Route and send: where an allowed packet goes, across a wire or by routes and neighbours.

use crate::{
    flow::hash::KeyHash,
    forward::{
        Neighbour, ResolveRequest, RouteDecision,
        hold_queue::HoldOutcome,
        icmp::{self, Problem},
        rewrite,
    },
    frame::Frame,
    io::PacketIo,
    port::{Port, PortId, PortKind},
    verdict::DropReason,
    wire::{Packet, checksum},
};

use super::{Lookahead, WorkerTurn};

/// Whether a frame on a routed port is addressed to the router: untagged, unicast, and on an uplink to the port's own
/// Ethernet address. Frames that the egress guard redirects into the host port have the Ethernet address of the pod.
#[inline]
pub(super) fn is_for_router(frame: &[u8], port: &Port) -> bool {
    let Some(header) = frame.first_chunk::<14>() else {
        return false;
    };
    let tagged = !matches!(header[12..], [0x08, 0x00] | [0x86, 0xdd]);
    let group = header[0] & 1 != 0;
    !tagged && !group && (port.kind != PortKind::Uplink || header[..6] == port.mac)
}

/// How a packet leaves.
#[derive(Clone, Copy, Debug)]
pub(super) enum OutputPath {
    /// Across a wire, by this port.
    Wire(PortId),
    /// By a port, to a next hop.
    Hop {
        port: PortId,
        /// Destination and source Ethernet addresses.
        macs: [[u8; 6]; 2],
        /// Whether to decrement the TTL: packets from or to this machine's kernel are not routed.
        counts: bool,
    },
    /// It is held until the Ethernet address of the next hop is known.
    Wait(ResolveRequest),
}

impl OutputPath {
    /// The port that it leads out of.
    #[inline]
    pub(super) fn port(self) -> PortId {
        match self {
            Self::Wire(port) | Self::Hop { port, .. } => port,
            Self::Wait(to) => to.port,
        }
    }
}

/// Why a packet cannot be routed, and which ICMP error its sender gets.
#[derive(Clone, Copy, Debug)]
pub(super) struct RouteFailure {
    reason: DropReason,
    problem: Option<Problem>,
    /// A failed neighbour to resolve again: the kernel does not retry by itself.
    look_again: Option<ResolveRequest>,
}

impl From<DropReason> for RouteFailure {
    fn from(reason: DropReason) -> Self {
        Self {
            reason,
            problem: None,
            look_again: None,
        }
    }
}

impl RouteFailure {
    fn with_icmp(reason: DropReason, problem: Problem) -> Self {
        Self {
            problem: Some(problem),
            ..reason.into()
        }
    }

    fn unresolved(look_again: Option<ResolveRequest>) -> Self {
        Self {
            look_again,
            ..Self::with_icmp(DropReason::NeighbourUnresolved, Problem::HostUnreachable)
        }
    }
}

impl<Io: PacketIo> WorkerTurn<'_, Io> {
    /// Routes an allowed packet; of one in a tunnel, the outermost around it (on a wire, either).
    #[inline(always)]
    pub(super) fn route(
        &self,
        packet: &Packet,
        port: &Port,
        hash: KeyHash,
    ) -> Result<OutputPath, RouteFailure> {
        match port.kind {
            PortKind::Wire { peer } => match self.port(peer) {
                None => Err(DropReason::PortUnavailable.into()),
                Some(out) if packet.outer_length() > out.mtu => Err(DropReason::TooBig.into()),
                Some(_) => Ok(OutputPath::Wire(peer)),
            },
            PortKind::Pod | PortKind::Uplink | PortKind::Host => self.route_by_table(packet, port, hash),
            PortKind::Ask => Err(DropReason::PortUnavailable.into()), // the kernel has routed what comes by it
        }
    }

    fn route_by_table(
        &self,
        packet: &Packet,
        port: &Port,
        hash: KeyHash,
    ) -> Result<OutputPath, RouteFailure> {
        let forwarding = self.forwarding.ok_or(DropReason::NoRoute)?;
        if is_link_local(packet) {
            return Err(DropReason::MartianAddress.into());
        }
        // All fragments of a datagram take the same path, so their hash leaves out ports.
        let hops = if packet.fragment.is_some() {
            hash.pair as u32
        } else {
            hash.directed as u32
        };
        let refused = |problem| Err(RouteFailure::with_icmp(DropReason::RouteRefused, problem));
        match forwarding.route(packet.dst, hops) {
            RouteDecision::Hop { port: out, neighbour } => {
                let to = ResolveRequest {
                    port: out,
                    addr: neighbour,
                };
                self.next_hop(packet, port, to)
            }
            RouteDecision::Local => self.to_host(packet, port),
            RouteDecision::Blackhole => Err(DropReason::RouteRefused.into()),
            RouteDecision::Unreachable => refused(Problem::NoRoute),
            RouteDecision::Prohibit => refused(Problem::Prohibited),
            RouteDecision::NoRoute => Err(RouteFailure::with_icmp(DropReason::NoRoute, Problem::NoRoute)),
        }
    }

    /// To this host's kernel, which is the destination, so the TTL stays.
    fn to_host(&self, packet: &Packet, port: &Port) -> Result<OutputPath, RouteFailure> {
        let host = self
            .forwarding
            .and_then(|forwarding| forwarding.host())
            .and_then(|(id, mac)| Some((self.port(id)?, mac)));
        match host {
            Some((host, _)) if host.id != port.id && packet.total_length() > host.mtu => Err(
                RouteFailure::with_icmp(DropReason::TooBig, Problem::TooBig(host.mtu)),
            ),
            Some((host, mac)) if host.id != port.id => Ok(OutputPath::Hop {
                port: host.id,
                macs: [mac, host.mac],
                counts: false,
            }),
            _ => Err(DropReason::PortUnavailable.into()),
        }
    }

    fn next_hop(&self, packet: &Packet, port: &Port, to: ResolveRequest) -> Result<OutputPath, RouteFailure> {
        let out = self
            .port(to.port)
            .filter(|out| out.id != port.id && !matches!(out.kind, PortKind::Wire { .. }))
            .ok_or(DropReason::PortUnavailable)?;
        // A packet from the host port is this host's own and keeps the TTL that the kernel set.
        let counts = port.kind != PortKind::Host;
        if counts && packet.ttl <= 1 {
            return Err(RouteFailure::with_icmp(
                DropReason::TtlExceeded,
                Problem::TimeExceeded,
            ));
        }
        if packet.total_length() > out.mtu {
            return Err(RouteFailure::with_icmp(
                DropReason::TooBig,
                Problem::TooBig(out.mtu),
            ));
        }
        let neighbour = self
            .forwarding
            .and_then(|forwarding| forwarding.neighbour(to.port, to.addr));
        match neighbour {
            Some(Neighbour::Reachable(mac)) => Ok(OutputPath::Hop {
                port: out.id,
                macs: [mac, out.mac],
                counts,
            }),
            Some(Neighbour::Failed) => Err(RouteFailure::unresolved(Some(to))),
            None if self.hold_queue.is_unreachable(to, self.now) => Err(RouteFailure::unresolved(None)),
            None => Ok(OutputPath::Wait(to)),
        }
    }

    /// Sends a packet on its way. `routed` is the packet, or the outermost one around it.
    #[inline(always)]
    pub(super) fn transmit(
        &mut self,
        mut frame: Frame,
        packet: &Packet,
        routed: &Packet,
        port: &Port,
        path: OutputPath,
    ) {
        if port.partial_checksums {
            if checksum::complete_partial(frame.bytes_mut(), packet) {
                self.stats.counters.checksums_completed.add(1);
            }
            if packet.tunnel.is_some() {
                self.complete_carriers(frame.bytes_mut());
            }
        }
        let out = match path {
            OutputPath::Wire(peer) => peer,
            OutputPath::Hop {
                port,
                macs: [to, from],
                counts,
            } => {
                if counts {
                    rewrite::decrement_ttl(frame.bytes_mut(), routed);
                }
                rewrite::ethernet(frame.bytes_mut(), to, from);
                port
            }
            OutputPath::Wait(_) => return self.discard(frame, DropReason::NeighbourUnresolved), // it waits before that
        };
        self.send(out, frame);
    }

    /// Completes the partial checksums of a packet of several buffers, as [`Self::transmit`] does for others: before it is judged,
    /// so that the common path need not ask.
    pub(super) fn complete_chain(&self, frame: &mut Frame, packet: &Packet, port: &Port) {
        if !port.partial_checksums {
            return;
        }
        if self.complete_partial_of_chain(frame, packet) {
            self.stats.counters.checksums_completed.add(1);
        }
        if packet.tunnel.is_some() {
            self.complete_carriers_of_chain(frame);
        }
    }

    /// Completes the checksum of a packet of several buffers that its sender left to the hardware. Answers whether it did.
    pub(super) fn complete_partial_of_chain(&self, frame: &mut Frame, packet: &Packet) -> bool {
        let patch = checksum::partial_of_chain(frame.bytes(), self.io.rest(frame), packet);
        if let Some(patch) = patch {
            patch.apply(frame.bytes_mut());
        }
        patch.is_some()
    }

    /// Holds a copy of a packet and has its next hop resolved. No flow state changes: the packet is judged again when
    /// it is released.
    #[cold]
    pub(super) fn hold(&mut self, frame: Frame, packet: &Packet, port: &Port, to: ResolveRequest) {
        let HoldOutcome {
            held: kept,
            resolve: ask,
            evicted: gave_way,
        } = self
            .hold_queue
            .hold((frame.bytes(), frame.len()), to, port, packet.src, self.now);
        if ask {
            self.shared.request_resolve(to);
        }
        if let Some(ingress) = gave_way {
            self.count_drop(ingress, DropReason::NeighbourUnresolved);
        }
        self.stats.counters.held.set(self.hold_queue.len() as u64);
        if kept {
            self.io.release(frame);
        } else {
            self.drop_packet(frame, packet, port, DropReason::NeighbourUnresolved);
        }
    }

    /// Releases held packets whose next hop is resolved, through all stages again. Drops those that were held too
    /// long.
    #[cold]
    pub(super) fn release_held(&mut self) {
        let Some(forwarding) = self.forwarding else {
            return;
        };
        let known = |to: &ResolveRequest| forwarding.neighbour(to.port, to.addr);
        while let Some(held) = self.hold_queue.next(self.now, known) {
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
            self.resume_held(frame, resolved);
        }
        self.stats.counters.held.set(self.hold_queue.len() as u64);
    }

    fn resume_held(&mut self, frame: Frame, resolved: bool) {
        let mut meta = super::PacketMeta::BLANK;
        meta.disposition = self.parse_and_steer(&frame, &mut meta);
        let super::PacketMeta { packet, hash, .. } = meta;
        match (self.port(frame.port()), meta.disposition) {
            // This worker held it, so it owns the shard.
            (Some(_), super::Disposition::Own) if resolved => {
                self.process_packet(frame, &packet, hash, Lookahead::AFTER_HOLD)
            }
            (Some(port), super::Disposition::NotSubjectInTunnel(kind)) if resolved => {
                self.handle_not_subject_in_tunnel(frame, &packet, port, hash, kind)
            }
            (Some(port), super::Disposition::Own) => {
                self.reject(frame, &packet, port, RouteFailure::unresolved(None));
            }
            _ => self.discard(frame, DropReason::NeighbourUnresolved),
        }
    }

    /// Drops a packet that cannot be routed and sends an ICMP error, rate limited.
    #[cold]
    pub(super) fn reject(&mut self, frame: Frame, packet: &Packet, port: &Port, why: RouteFailure) {
        let now = self.now;
        if let Some(to) = why.look_again
            && self.hold_queue.may_resolve(now)
        {
            self.shared.request_resolve(to);
        }
        if let Some(problem) = why.problem
            && icmp::may_answer(packet)
            && self
                .icmp_sent
                .bucket(self.account_at_port(packet.src, port))
                .take(now)
            && let Some(forwarding) = self.forwarding
            && let Some(error) = icmp_error(self.io, forwarding, frame.bytes(), packet, port, problem)
        {
            self.stats.counters.generated.add(1);
            self.stats.counters.icmp_sent.add(1);
            self.send(port.id, error);
        }
        self.drop_packet(frame, packet, port, why.reason);
    }
}

/// An ICMP error about a packet, to be sent out of the port that the packet arrived at. None if no frame is free or
/// no source address is known.
fn icmp_error<Io: PacketIo>(
    io: &mut Io,
    forwarding: &crate::forward::Forwarding,
    original: &[u8],
    packet: &Packet,
    port: &Port,
    problem: Problem,
) -> Option<Frame> {
    let source = forwarding.icmp_source(port.id, packet.src.is_v4())?;
    let length = icmp::length(packet, original);
    reply(io, forwarding, original, port, length, |out| {
        icmp::write(out, original, packet, source, problem)
    })
}

/// A frame of `length` bytes to whoever sent `original`, out of the port that it arrived at. `write` fills it and leaves its
/// Ethernet addresses; None if it answers false or no frame is free.
pub(super) fn reply<Io: PacketIo>(
    io: &mut Io,
    forwarding: &crate::forward::Forwarding,
    original: &[u8],
    port: &Port,
    length: usize,
    write: impl FnOnce(&mut [u8]) -> bool,
) -> Option<Frame> {
    let (mut receiver, mut sender) = ([0; 6], [0; 6]);
    receiver.copy_from_slice(original.get(..6)?);
    sender.copy_from_slice(original.get(6..12)?);
    let [to, from] = match forwarding.host() {
        // On a wire the frame comes from whom the packet was for, since the gateway has no address there.
        _ if matches!(port.kind, PortKind::Wire { .. }) => [sender, receiver],
        // Frames that the egress guard redirected have the Ethernet address of another port.
        Some((host, kernel_end)) if host == port.id => [kernel_end, port.mac],
        _ => [sender, port.mac],
    };
    let mut frame = io.allocate()?;
    if !frame.set_len(length) || !write(frame.bytes_mut()) {
        io.release(frame);
        return None;
    }
    rewrite::ethernet(frame.bytes_mut(), to, from);
    frame.set_port(port.id);
    Some(frame)
}

/// IPv6 link-local addresses, which no router forwards (RFC 4291 2.5.6). IPv4 link-local addresses are forwarded, as
/// metadata services use them.
#[inline]
fn is_link_local(packet: &Packet) -> bool {
    let is = |addr: crate::addr::Addr| {
        let octets = addr.octets();
        octets[0] == 0xfe && octets[1] & 0xc0 == 0x80
    };
    is(packet.src) || is(packet.dst)
}
