//! Pods' interfaces are guarded as soon as the kernel says that they are there, before anything else is looked after.
//!
//! Until its programs are attached, the kernel is kept from using a pod's new interface (`quarantine`), so that the pod waits. A
//! thread of its own listens to links alone and attaches; the programs are loaded already, and hold the fail mode without
//! sockets. Whoever opens the port later finds them there and takes them over.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use netlink_packet_route::{AddressFamily, RouteNetlinkMessage, link::LinkMessage};
use ringwall_config::XdpMode;
use ringwall_dataplane::port::PortKind;

use super::{
    netlink::{ChangeStream, KernelChange, Netlink, NetlinkError, name_of},
    ports,
    runtime::DataplaneRuntime,
    snapshot_server::locked,
};

/// Between two looks whether the machine stops.
const LOOK: Duration = Duration::from_millis(500);

/// How long to wait for more once something came: a node starts many pods at once. Making one takes the kernel up to some
/// milliseconds, in which opening the ports of those before would compete for its lock of all interfaces.
const MORE: Duration = Duration::from_millis(5);

/// Attaches programs to pods' interfaces that come.
pub struct PodGuard {
    machine: Arc<DataplaneRuntime>,
    changes: ChangeStream,
    /// Interfaces that are guarded, with the names that they had.
    guarded: BTreeMap<u32, String>,
}

impl PodGuard {
    /// Listens from now on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(machine: Arc<DataplaneRuntime>) -> Result<Self, NetlinkError> {
        let changes = ChangeStream::of_links()?;
        let guarded = locked(&machine.live)
            .iter()
            .filter_map(|port| Some((port.attached.as_ref()?.ifindex(), port.planned.name.clone())))
            .collect();
        Ok(Self {
            machine,
            changes,
            guarded,
        })
    }

    /// Until the machine stops.
    pub fn run(mut self) {
        self.look_at_all(); // what came before the subscription
        let mut patience = LOOK;
        while !self.machine.stop.load(Ordering::Relaxed) {
            let change = self.changes.wait(patience);
            // Until there is nothing more to hear, whoever opens ports waits.
            let busy = !matches!(&change, Ok(KernelChange::Messages(messages)) if messages.is_empty());
            self.machine.guarding.store(busy, Ordering::Relaxed);
            patience = if busy { MORE } else { LOOK };
            match change {
                Ok(KernelChange::Messages(messages)) => {
                    for message in &messages {
                        match message {
                            RouteNetlinkMessage::NewLink(link) => self.look_at(link),
                            RouteNetlinkMessage::DelLink(link)
                                if link.header.interface_family != AddressFamily::Bridge =>
                            {
                                self.guarded.remove(&link.header.index);
                                self.machine.hold_again(link.header.index);
                            }
                            _ => {}
                        }
                    }
                }
                Ok(KernelChange::Overrun) => self.look_at_all(),
                Err(error) => {
                    tracing::error!(%error, "cannot watch for new interfaces; retrying");
                    std::thread::sleep(LOOK);
                }
            }
        }
    }

    fn look_at_all(&mut self) {
        match Netlink::open().and_then(|mut netlink| netlink.links()) {
            Ok(links) => {
                let there: BTreeSet<u32> = links.iter().map(|link| link.header.index).collect();
                self.guarded.retain(|index, _| there.contains(index));
                self.machine.hold_again_all_but(&there);
                links.iter().for_each(|link| self.look_at(link));
            }
            Err(error) => tracing::error!(%error, "cannot list the interfaces"),
        }
    }

    fn look_at(&mut self, link: &LinkMessage) {
        let index = link.header.index;
        let Some(name) = name_of(link).filter(|_| link.header.interface_family != AddressFamily::Bridge)
        else {
            return;
        };
        if self.guarded.get(&index).is_some_and(|known| known == name) {
            return;
        }
        let began = Instant::now();
        let plan = locked(&self.machine.plan).clone();
        let Some(mut port) = plan.port_named(name).filter(|port| port.kind == PortKind::Pod) else {
            self.machine.release(name, index);
            return;
        };
        // Natively or not at all: whoever opens the port may put it in order first.
        if port.xdp == XdpMode::Auto {
            port.xdp = XdpMode::Native;
        }
        let attached = {
            let _one_at_a_time = locked(&self.machine.attaching);
            // Whoever opens ports may have been faster, and attached it in another way.
            if ringwall_bpf::is_attached(&plan.pins, name) {
                self.machine.release(name, index); // which the end of a former one may have held again
                self.guarded.insert(index, name.to_owned());
                return;
            }
            let (local, pods) = self.machine.addresses();
            let attached = ports::attach(&plan, &port, &local, &pods);
            if let Ok(Some(guarded)) = attached.as_ref().map(|port| port.attached.as_ref()) {
                self.machine.release(name, guarded.ifindex());
            }
            attached
        };
        match attached {
            Ok(_) => {
                tracing::debug!(
                    port = name,
                    micros = began.elapsed().as_micros() as u64,
                    "guarded"
                );
                self.guarded.insert(index, name.to_owned());
            }
            Err(error) => tracing::debug!(port = name, "not guarded yet: {error:#}"),
        }
    }
}
