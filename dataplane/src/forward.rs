//! Where a packet goes: `wire` (out of the other end) or `routed` (routes, neighbours, rewriting).
//!
//! [`Forwarding`] is what the kernel's ports, routes and neighbours are at one moment: built off the workers, published
//! by [`crate::rcu`], immutable.

mod fib;
pub(crate) mod hold_queue;
pub(crate) mod icmp;
mod places;
pub(crate) mod reset;
pub(crate) mod rewrite;

use hashbrown::HashMap;

use crate::{
    addr::Addr,
    port::{Port, PortId, PortKind, ReversePath},
};

use fib::Fib;
pub use places::NetworkPlace;
pub(crate) use places::NetworkPlaces;

/// One way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The port.
    pub port: PortId,
    /// The router on that port; None where the destination itself is on it.
    pub gateway: Option<Addr>,
    /// Its share among the hops of a multipath route; 0 counts as 1.
    pub weight: u16,
}

/// What a prefix of the routing table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Out of one port.
    Hop(Hop),
    /// Out of one of several, chosen by the hash of addresses, ports and protocol. Empty is as `Unreachable`.
    Multipath(Box<[Hop]>),
    /// To this host's kernel, through the port of kind `host`.
    Local,
    /// Dropped silently.
    Blackhole,
    /// Refused with an ICMP error: no route.
    Unreachable,
    /// Refused with an ICMP error: administratively prohibited.
    Prohibit,
}

impl Route {
    /// The destination is on the port itself.
    pub fn connected(port: PortId) -> Self {
        Self::Hop(Hop {
            port,
            gateway: None,
            weight: 1,
        })
    }

    /// Through a router on a port.
    pub fn via(port: PortId, gateway: Addr) -> Self {
        Self::Hop(Hop {
            port,
            gateway: Some(gateway),
            weight: 1,
        })
    }
}

/// What is known of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Its Ethernet address.
    Reachable([u8; 6]),
    /// The kernel's probes were not answered.
    Failed,
}

/// A neighbour that the dataplane needs and does not know: the control side makes the kernel look for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResolveRequest {
    /// On which port.
    pub port: PortId,
    /// Its address.
    pub addr: Addr,
}

/// A port and what the forwarding path asks of it.
#[derive(Clone, Debug)]
struct PortEntry {
    port: Port,
    /// Source of ICMP errors, by family.
    v4: Option<Addr>,
    v6: Option<Addr>,
}

/// Collects ports, routes and neighbours.
#[derive(Clone, Debug, Default)]
pub struct ForwardingBuilder {
    ports: Vec<Option<PortEntry>>,
    fib: Fib,
    neighbours: HashMap<(PortId, Addr), Neighbour>,
    host: Option<(PortId, [u8; 6])>,
    sources: [Option<Addr>; 2],
    places: NetworkPlaces,
    stations: HashMap<String, Vec<(PortId, [u8; 6])>>,
}

impl ForwardingBuilder {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a port under its number, or replaces it. Numbers should be small: they index a table.
    pub fn port(&mut self, port: Port) -> &mut Self {
        let index = usize::from(port.id.0);
        if self.ports.len() <= index {
            self.ports.resize(index + 1, None);
        }
        self.ports[index] = Some(PortEntry {
            port,
            v4: None,
            v6: None,
        });
        self
    }

    /// An address of a port that was added: source of the ICMP errors about packets that came in by it. The first of
    /// each family counts.
    pub fn port_address(&mut self, port: PortId, addr: Addr) -> &mut Self {
        if let Some(Some(entry)) = self.ports.get_mut(usize::from(port.0)) {
            let slot = if addr.is_v4() {
                &mut entry.v4
            } else {
                &mut entry.v6
            };
            slot.get_or_insert(addr);
        }
        self
    }

    /// Source of ICMP errors on ports without an address of that family. Without either, no error is sent.
    pub fn icmp_source(&mut self, addr: Addr) -> &mut Self {
        self.sources[usize::from(!addr.is_v4())] = Some(addr);
        self
    }

    /// The port of kind `host` and the Ethernet address of the kernel's end of it.
    pub fn host(&mut self, port: PortId, kernel_end: [u8; 6]) -> &mut Self {
        self.host = Some((port, kernel_end));
        self
    }

    /// Adds a route, or replaces the one for the same prefix. `length` counts from the first bit of the family's
    /// address: 0..=32 for IPv4, 0..=128 for IPv6; longer ones count as the longest. Host bits are ignored.
    pub fn route(&mut self, prefix: Addr, length: u8, route: Route) -> &mut Self {
        self.fib.insert(prefix, length, route);
        self
    }

    /// Adds or replaces a neighbour.
    pub fn neighbour(&mut self, port: PortId, addr: Addr, neighbour: Neighbour) -> &mut Self {
        self.neighbours.insert((port, addr), neighbour);
        self
    }

    /// Says where a network is. `length` as in [`Self::route`]; networks with a place do not overlap.
    pub fn place(&mut self, prefix: Addr, length: u8, place: NetworkPlace) -> &mut Self {
        self.places.insert(prefix, length, place);
        self
    }

    /// The Ethernet address of a node on a wire's port that binds sources.
    pub fn station(&mut self, port: PortId, node: &str, mac: [u8; 6]) -> &mut Self {
        let known = self.stations.entry(node.to_owned()).or_default();
        known.retain(|(other, _)| *other != port);
        known.push((port, mac));
        self
    }

    /// The finished snapshot.
    pub fn build(mut self) -> Forwarding {
        self.fib.finish();
        Forwarding {
            ports: self.ports.into_boxed_slice(),
            fib: self.fib,
            neighbours: self.neighbours,
            host: self.host,
            sources: self.sources,
            places: self.places,
            stations: self.stations,
        }
    }
}

/// Ports, routes and neighbours of one moment.
#[derive(Debug)]
pub struct Forwarding {
    ports: Box<[Option<PortEntry>]>,
    fib: Fib,
    neighbours: HashMap<(PortId, Addr), Neighbour>,
    host: Option<(PortId, [u8; 6])>,
    sources: [Option<Addr>; 2],
    places: NetworkPlaces,
    stations: HashMap<String, Vec<(PortId, [u8; 6])>>,
}

/// What routing decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteDecision {
    /// Out of a port, to this neighbour.
    Hop {
        /// The port.
        port: PortId,
        /// The router, or the destination itself.
        neighbour: Addr,
    },
    /// To this host.
    Local,
    /// Dropped silently.
    Blackhole,
    /// Refused: no route, or a route that says so.
    Unreachable,
    /// Refused: administratively prohibited.
    Prohibit,
    /// The table has no prefix for it.
    NoRoute,
}

impl Forwarding {
    /// A port by number.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.entry(id).map(|entry| &entry.port)
    }

    #[inline]
    fn entry(&self, id: PortId) -> Option<&PortEntry> {
        self.ports.get(usize::from(id.0))?.as_ref()
    }

    /// All ports, in order of their numbers.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().flatten().map(|entry| &entry.port)
    }

    /// The other end of a wire.
    #[inline]
    pub fn peer(&self, id: PortId) -> Option<&Port> {
        match self.port(id)?.kind {
            PortKind::Wire { peer } => self.port(peer),
            _ => None,
        }
    }

    /// Longest prefix match; `hash` chooses among the hops of a multipath route.
    #[inline]
    pub fn route(&self, dst: Addr, hash: u32) -> RouteDecision {
        match self.fib.lookup(dst) {
            None => RouteDecision::NoRoute,
            Some(Route::Hop(hop)) => path(hop, dst),
            Some(Route::Multipath(hops)) => {
                choose_hop(hops, hash).map_or(RouteDecision::Unreachable, |hop| path(hop, dst))
            }
            Some(Route::Local) => RouteDecision::Local,
            Some(Route::Blackhole) => RouteDecision::Blackhole,
            Some(Route::Unreachable) => RouteDecision::Unreachable,
            Some(Route::Prohibit) => RouteDecision::Prohibit,
        }
    }

    /// Whether an address is this machine's own.
    pub fn is_local(&self, addr: Addr) -> bool {
        matches!(self.fib.lookup(addr), Some(Route::Local))
    }

    /// Whether an address is reached by the port of one pod.
    pub fn is_local_pod(&self, addr: Addr) -> bool {
        self.hops(addr).iter().any(|hop| self.is_pod_port(hop.port))
    }

    fn is_pod_port(&self, port: PortId) -> bool {
        self.port(port).is_some_and(|port| port.kind == PortKind::Pod)
    }

    /// The ways to an address; none where no route leads over a port.
    fn hops(&self, addr: Addr) -> &[Hop] {
        match self.fib.lookup(addr) {
            Some(Route::Hop(hop)) => std::slice::from_ref(hop),
            Some(Route::Multipath(hops)) => hops,
            _ => &[],
        }
    }

    /// Whether packets to an address may leave by a port: the one of its route, or one of several.
    pub fn leads_to(&self, addr: Addr, port: &Port) -> bool {
        match port.kind {
            PortKind::Host => self.is_local(addr),
            _ => self.hops(addr).iter().any(|hop| hop.port == port.id),
        }
    }

    /// Whether packets from an address may come in by a port of a router. By the port of kind `host` only this machine's
    /// own come in: what it forwards from elsewhere could claim any source.
    pub fn passes_reverse_path(&self, src: Addr, port: &Port) -> bool {
        let local = self.is_local(src);
        match (port.kind, port.reverse_path) {
            (PortKind::Host, _) => local,
            _ if local => false,
            (PortKind::Pod, _) | (_, ReversePath::Strict) => self.leads_to(src, port),
            _ if self.is_local_pod(src) => false,
            (_, ReversePath::Loose) => !self.hops(src).is_empty(),
            (_, ReversePath::Off) => !matches!(self.fib.lookup(src), Some(Route::Blackhole)),
        }
    }

    /// Whether a packet from an address comes from the station that packets to it would be sent to. Answers the neighbour
    /// that has to be known first where it is not.
    pub fn is_mac_of_next_hop(
        &self,
        src: Addr,
        port: &Port,
        station: [u8; 6],
    ) -> Result<bool, ResolveRequest> {
        let mut unknown = None;
        for hop in self.hops(src).iter().filter(|hop| hop.port == port.id) {
            let request = ResolveRequest {
                port: port.id,
                addr: hop.gateway.unwrap_or(src),
            };
            match self.neighbour(request.port, request.addr) {
                Some(Neighbour::Reachable(mac)) if mac == station => return Ok(true),
                Some(_) => {}
                None => unknown = Some(request),
            }
        }
        unknown.map_or(Ok(false), Err)
    }

    /// Where networks are.
    #[inline]
    pub(crate) fn places(&self) -> &NetworkPlaces {
        &self.places
    }

    /// The Ethernet address of a node on a wire's port, where it is known.
    pub fn station(&self, port: PortId, node: &str) -> Option<[u8; 6]> {
        let known = self.stations.get(node)?;
        let here = known.iter().find(|(other, _)| *other == port);
        here.map(|(_, mac)| *mac)
    }

    /// A neighbour on a port.
    #[inline]
    pub fn neighbour(&self, port: PortId, addr: Addr) -> Option<Neighbour> {
        self.neighbours.get(&(port, addr)).copied()
    }

    /// The port that leads to the kernel and the Ethernet address of its other end.
    #[inline]
    pub fn host(&self) -> Option<(PortId, [u8; 6])> {
        self.host
    }

    /// Source of an ICMP error about a packet that came in by `port`.
    pub fn icmp_source(&self, port: PortId, v4: bool) -> Option<Addr> {
        let own = self
            .entry(port)
            .and_then(|entry| if v4 { entry.v4 } else { entry.v6 });
        own.or(self.sources[usize::from(!v4)])
    }
}

fn path(hop: &Hop, dst: Addr) -> RouteDecision {
    RouteDecision::Hop {
        port: hop.port,
        neighbour: hop.gateway.unwrap_or(dst),
    }
}

/// The hop whose span of weights the hash falls into.
fn choose_hop(hops: &[Hop], hash: u32) -> Option<&Hop> {
    let weight = |hop: &Hop| u64::from(hop.weight.max(1));
    let total: u64 = hops.iter().map(weight).sum();
    let mut at = (u64::from(hash) * total) >> 32;
    hops.iter().find(|hop| {
        let here = at < weight(hop);
        at = at.saturating_sub(weight(hop));
        here
    })
}
