//! Tunnels on the way: whose tunnel packets are believed, and what inside of them is judged. Pods' own tunnel packets are
//! judged as what they are from outside, as any other UDP or IP protocol.
#![allow(clippy::result_large_err)] // as in `judge`

use arrayvec::ArrayVec;

use crate::{
    addr::Addr,
    classify::{Identity, IdentityKind, Snapshot},
    flow::hash::KeyHash,
    frame::Frame,
    io::PacketIo,
    port::{Port, PortId, PortKind},
    tunnels::Encapsulation,
    verdict::DropReason,
    wire::{
        self, Packet, Parsed, Quoted, Transport, checksum,
        subject::{NotSubject, NotSubjectTable},
        tunnel::{MAX_TUNNELS, Tunnel, TunnelKind},
    },
};

use super::{
    Disposition, PacketMeta, WorkerTurn,
    judge::{Denial, FlowUpdate, longest_error, source_mac},
    route::OutputPath,
};

/// Pairs of tunnel ends whose packets were found to be nodes', from where they are, under the snapshot and forwarding in force.
#[derive(Debug)]
pub(super) struct CarrierCache {
    in_force: [u64; 2],
    pairs: Box<[Option<CarrierKey>; Self::PAIRS]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CarrierKey {
    src: Addr,
    dst: Addr,
    vlan: u32,
    port: PortId,
    station: [u8; 6],
}

impl Default for CarrierCache {
    fn default() -> Self {
        Self {
            in_force: [0; 2],
            pairs: Box::new([None; Self::PAIRS]),
        }
    }
}

impl CarrierCache {
    const PAIRS: usize = 256;

    /// Forgets all of them if anything else is in force: `snapshot` and `forwarding` are the sequences of publication.
    pub(super) fn renew(&mut self, snapshot: u64, forwarding: u64) {
        if self.in_force != [snapshot, forwarding] {
            self.in_force = [snapshot, forwarding];
            self.pairs.fill(None);
        }
    }

    #[inline]
    fn place(&mut self, key: &CarrierKey) -> &mut Option<CarrierKey> {
        let [src, dst] = [key.src, key.dst].map(|addr| addr.to_u128() as u32);
        let mixed = (src ^ dst.rotate_left(16) ^ u32::from(key.port.0)).wrapping_mul(0x9e37_79b9);
        &mut self.pairs[(mixed >> 24) as usize % Self::PAIRS]
    }
}

/// What becomes of a tunnel packet.
enum Carrier {
    /// It is judged by its own addresses.
    Plain,
    /// What is inside is judged.
    Open(TunnelKind),
    Refused(DropReason),
}

impl<Io: PacketIo> WorkerTurn<'_, Io> {
    /// Goes on with the packet in a tunnel packet: puts it into `meta` in place of the one around it. None if the packet is
    /// no tunnel packet, or is judged as what it is.
    #[inline(never)]
    pub(super) fn look_into_tunnel(
        &mut self,
        frame: &[u8],
        port: &Port,
        meta: &mut PacketMeta,
    ) -> Option<Disposition> {
        let mut packet = meta.packet;
        for depth in 0..=MAX_TUNNELS {
            let Some(encapsulation) = self.shared.config.tunnels.encapsulation_of(&packet) else {
                break;
            };
            let kind = match self.admit_carrier(port, frame, &packet, encapsulation) {
                Carrier::Plain => break,
                Carrier::Open(kind) if depth < MAX_TUNNELS => kind,
                Carrier::Open(_) => return Some(Disposition::Refused(DropReason::TunnelNested)),
                Carrier::Refused(reason) => return Some(Disposition::Refused(reason)),
            };
            match self.open(frame, &packet, kind, meta.packet.total_length()) {
                Ok(Parsed::Subject(inside)) => packet = inside,
                Ok(Parsed::NotSubject(kind)) => return Some(Disposition::NotSubjectInTunnel(kind)),
                Ok(Parsed::Malformed(reason)) | Err(reason) => return Some(Disposition::Refused(reason)),
            }
        }
        self.stats.counters.tunnelled.count(packet.tunnel?.kind);
        meta.packet = packet;
        meta.hash = self.seed.key(&packet.owner_key(port.zone));
        let owner = self.shard_map.owner(meta.hash.shard());
        if usize::from(owner) != self.index {
            return Some(Disposition::HandOver(owner));
        }
        self.table.prefetch_buckets(meta.hash);
        Some(Disposition::Own)
    }

    /// The packet in a tunnel packet.
    #[inline]
    fn open(
        &self,
        frame: &[u8],
        carrier: &Packet,
        kind: TunnelKind,
        outer_length: u16,
    ) -> Result<Parsed, DropReason> {
        if carrier.fragment.is_some() {
            return Err(DropReason::TunnelFragment);
        }
        let (mut parsed, network) = wire::tunnel::decapsulate(frame, carrier, kind)?;
        let zone = self
            .shared
            .config
            .tunnels
            .zone(network)
            .ok_or(DropReason::TunnelNetwork)?;
        if let Parsed::Subject(packet) = &mut parsed {
            packet.tunnel = Some(Tunnel {
                kind,
                l3: carrier.l3,
                outer_length,
                zone,
            });
        }
        Ok(parsed)
    }

    /// Whether a tunnel packet is believed: its source is a node's address and belongs where it came from. A packet in a tunnel
    /// may be one itself; then the node must be the one that sent the tunnel packet.
    #[inline]
    fn admit_carrier(
        &mut self,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        encapsulation: Encapsulation,
    ) -> Carrier {
        let key = CarrierKey {
            src: packet.src,
            dst: packet.dst,
            vlan: packet.vlan,
            port: port.id,
            station: source_mac(frame).unwrap_or_default(),
        };
        if let Encapsulation::Open(kind) = encapsulation
            && packet.tunnel.is_none()
            && *self.carriers.place(&key) == Some(key)
        {
            return Carrier::Open(kind);
        }
        let admitted = self.identify_carrier(port, frame, packet, encapsulation);
        if matches!(admitted, Carrier::Open(_)) && packet.tunnel.is_none() {
            *self.carriers.place(&key) = Some(key);
        }
        admitted
    }

    #[cold]
    fn identify_carrier(
        &self,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
        encapsulation: Encapsulation,
    ) -> Carrier {
        use IdentityKind::{Node, Pod, Service, Unknown};
        let tunnels = &self.shared.config.tunnels;
        let Some(snapshot) = self.snapshot else {
            // Failsafe rules admit what they name, not what may be anything.
            let named = self.shared.config.failsafe.names(&packet.key(port.zone));
            return if named {
                Carrier::Plain
            } else {
                Carrier::Refused(DropReason::NoSnapshot)
            };
        };
        let (src, dst) = (snapshot.identify(packet.src), snapshot.identify(packet.dst));
        if matches!(src.kind, Pod | Unknown) || matches!(dst.kind, Pod | Unknown | Service) {
            return Carrier::Plain;
        }
        let Encapsulation::Open(kind) = encapsulation else {
            let between_nodes = src.kind == Node && dst.kind == Node;
            let allowed = tunnels.opaque == crate::tunnels::OpaqueAction::Allow
                || self.shared.config.failsafe.names(&packet.key(port.zone));
            return if between_nodes && !allowed {
                Carrier::Refused(DropReason::TunnelOpaque)
            } else {
                Carrier::Plain
            };
        };
        if src.kind != Node {
            return if tunnels.allowed {
                Carrier::Plain
            } else {
                Carrier::Refused(DropReason::TunnelSource)
            };
        }
        match self.check_source(port, frame, packet, &src) {
            Ok(()) => Carrier::Open(kind),
            Err(denial) => Carrier::Refused(denial.reason),
        }
    }

    /// Checks the source of a packet in a tunnel: a pod or node is at the node that sent the tunnel packet. Sources outside
    /// of the cluster come in tunnels from the node that they reached first. Where the tunnel packet itself belongs was checked
    /// when it came in.
    #[cold]
    pub(super) fn check_tunnelled_source(
        &self,
        frame: &[u8],
        packet: &Packet,
        tunnel: Tunnel,
        src: &Identity,
    ) -> Result<(), Denial> {
        use IdentityKind::{External, Node, Pod, Service, Unknown};
        let carrier = self
            .snapshot
            .zip(wire::tunnel::source_at(frame, tunnel.l3))
            .map(|(snapshot, addr)| snapshot.identify(addr));
        let Some(carrier) = carrier.filter(|carrier| carrier.kind == Node) else {
            return Err(DropReason::TunnelSource.into());
        };
        let fits = match src.kind {
            Pod | Node => src.node == carrier.node,
            External | Unknown => true,
            Service => false,
        };
        if !fits {
            return Err(DropReason::TunnelSpoofed.into());
        }
        if packet.src == packet.dst {
            return Err(DropReason::SpoofedSource.into());
        }
        Ok(())
    }

    /// An ICMP error that quotes no live flow passes if it is about a tunnel packet, to the node that sent it: nodes need
    /// those to learn the path MTU of their tunnels, whose packets have no flows of their own.
    #[cold]
    pub(super) fn judge_tunnel_error(
        &self,
        snapshot: &Snapshot,
        port: &Port,
        frame: &[u8],
        packet: &Packet,
    ) -> Result<FlowUpdate, Denial> {
        let unrelated = DropReason::IcmpUnrelated;
        let Transport::IcmpError { quoted: Some(quoted) } = packet.transport else {
            return Err(unrelated.into());
        };
        let Quoted {
            protocol,
            src_port,
            dst_port,
            ..
        } = quoted;
        let is_tunnel = matches!(
            self.shared
                .config
                .tunnels
                .encapsulation(protocol, src_port, dst_port),
            Some(Encapsulation::Open(_))
        );
        let [receiver, peer] = [quoted.src, quoted.dst].map(|addr| snapshot.identify(addr));
        let between_nodes = [&receiver, &peer]
            .iter()
            .all(|end| end.kind == IdentityKind::Node);
        if !is_tunnel || !between_nodes || quoted.src != packet.dst || packet.tunnel.is_some() {
            return Err(unrelated.into());
        }
        if packet.total_length() > longest_error(packet) {
            return Err(DropReason::IcmpTooLong.into());
        }
        let src = snapshot.identify(packet.src);
        self.check_error_source(port, frame, packet, &quoted, &src)?;
        let account = match src.kind {
            IdentityKind::External => self.account(packet.dst, &receiver),
            _ => self.account(packet.src, &src),
        };
        if !self.icmp_passed.has(account, self.now) {
            return Err(DropReason::IcmpRateLimited.into());
        }
        Ok(FlowUpdate::TunnelError { account })
    }

    /// A frame in a tunnel that is not subject to policy. Through a router it goes on if a wire would let it cross by default: the
    /// link that it belongs to is the tunnel's, whose ends find each other by it, and not the router's own. `packet` is the tunnel packet.
    #[cold]
    pub(super) fn handle_not_subject_in_tunnel(
        &mut self,
        mut frame: Frame,
        packet: &Packet,
        port: &Port,
        hash: KeyHash,
        kind: NotSubject,
    ) {
        if matches!(port.kind, PortKind::Wire { .. }) || !NotSubjectTable::WIRE.crosses(kind) {
            return self.handle_not_subject(frame, port, kind);
        }
        match self.route(packet, port, hash) {
            Ok(OutputPath::Wait(to)) => self.hold(frame, packet, port, to),
            Ok(path) => {
                self.complete_all_carriers(&mut frame, port);
                self.stats.counters.not_subject.add(1);
                self.transmit(frame, packet, packet, port, path);
            }
            Err(why) => self.reject(frame, packet, port, why),
        }
    }

    /// Completes partial checksums of the tunnel packets around a frame, if its port may bring any.
    #[cold]
    pub(super) fn complete_all_carriers(&self, frame: &mut Frame, port: &Port) {
        if !port.partial_checksums {
            return;
        }
        if frame.is_chain() {
            self.complete_carriers_of_chain(frame);
        } else {
            self.complete_carriers(frame.bytes_mut());
        }
    }

    /// Completes partial checksums of tunnel packets, from the inside out; that of the innermost packet is complete. A kernel sums
    /// them as if the one inside were complete, if that is partial; else it leaves them to the device like any other.
    #[cold]
    pub(super) fn complete_carriers(&self, frame: &mut [u8]) {
        for carrier in self.carriers(frame, frame.len()).iter().rev() {
            if checksum::complete_partial(frame, carrier) {
                self.stats.counters.checksums_completed.add(1);
            }
        }
    }

    /// The same in a packet of several buffers.
    #[cold]
    pub(super) fn complete_carriers_of_chain(&self, frame: &mut Frame) {
        for carrier in self.carriers(frame.bytes(), frame.len()).iter().rev() {
            if self.complete_partial_of_chain(frame, carrier) {
                self.stats.counters.checksums_completed.add(1);
            }
        }
    }

    /// Tunnel packets around another, from the outside in, in a frame of `length` bytes whose headers are in `frame`.
    fn carriers(&self, frame: &[u8], length: usize) -> ArrayVec<Packet, MAX_TUNNELS> {
        let mut carriers = ArrayVec::new();
        let mut parsed = wire::parse_beginning(frame, length);
        while let Parsed::Subject(packet) = parsed
            && let Some(Encapsulation::Open(kind)) = self.shared.config.tunnels.encapsulation_of(&packet)
            && carriers.try_push(packet).is_ok()
            && let Ok((inside, _)) = wire::tunnel::decapsulate(frame, &packet, kind)
        {
            parsed = inside;
        }
        carriers
    }

    /// Drops a tunnel packet whatever is inside; audit mode forwards it.
    #[cold]
    pub(super) fn refuse_tunnel(
        &mut self,
        frame: Frame,
        packet: &Packet,
        port: &Port,
        hash: KeyHash,
        reason: DropReason,
    ) {
        if !self.record_denial(&frame, packet, port, &reason.into()) {
            return self.discard(frame, reason);
        }
        match self.route(packet, port, hash) {
            Ok(OutputPath::Wait(to)) => self.hold(frame, packet, port, to),
            Ok(path) => self.transmit(frame, packet, packet, port, path),
            Err(why) => self.reject(frame, packet, port, why),
        }
    }
}

/// The outermost packet around one in a tunnel: what a router looks at. Nothing of it is read on a wire.
#[inline(always)]
pub(super) fn carrier_of(frame: &Frame, packet: &Packet, port: &Port) -> Option<Packet> {
    match (packet.tunnel, port.kind) {
        (None, _) | (_, PortKind::Wire { .. }) => None,
        (Some(_), _) => outermost(frame.bytes(), frame.len()),
    }
}

/// The outermost packet of a frame of `length` bytes, whose headers are in `frame`.
#[inline(never)]
fn outermost(frame: &[u8], length: usize) -> Option<Packet> {
    match wire::parse_beginning(frame, length) {
        Parsed::Subject(packet) => Some(packet),
        _ => None,
    }
}

/// The source of the outermost packet: where a packet in a tunnel, or a bare one, comes from.
pub(super) fn outer_source(frame: &[u8], packet: &Packet) -> Addr {
    match packet.tunnel {
        None => packet.src,
        // Its length was compared with the frame's when it was looked into: as if the frame were as long as can be.
        Some(_) => outermost(frame, u16::MAX.into()).map_or(packet.src, |outer| outer.src),
    }
}
