//! The veth pair by which first packets go to the worker and come back.
//!
//! ```text
//!  this namespace                    a namespace of the worker's own
//!  exit ─redirect─> rw-ask0 ══════ rw-ask1 ─XDP─> AF_XDP socket ─> worker
//!  out  <─redirect─ back ─┘ <══════════════════ AF_XDP TX <──────┘
//! ```
//! Its far end is in a namespace that nothing else is in and that has no name, so nobody but the worker sends there, whatever
//! rights a pod of the host's network has. The pair ends with the process that holds the namespace.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    thread,
};

use anyhow::Context;
use netlink_packet_route::link::LinkAttribute;
use nix::sched::CloneFlags;
use rustix::thread::LinkNameSpaceType;

use ringwall_dataplane::node::ask::AskHeader;

use crate::netlink::{Netlink, name_of};

/// The end in the node's namespace, where the programs send.
pub const NEAR: &str = "rw-ask0";
/// The end in the worker's namespace.
pub const FAR: &str = "rw-ask1";
/// Native XDP on a veth takes frames that fit a page with what the kernel keeps beside them.
const MTU: u32 = 3400;
const LINK_HEADER: u32 = 14;
/// The longest frame that can be asked about, in bytes with its link header.
pub const LONGEST_FRAME: u32 = MTU + LINK_HEADER - size_of::<AskHeader>() as u32;

/// The pair, and the namespace of its far end.
#[derive(Debug)]
pub struct AskPair {
    namespace: OwnedFd,
    /// Index of the near end.
    pub near: u32,
    /// Index of the far end, in its own namespace.
    pub far: u32,
}

impl AskPair {
    /// Makes the pair, in place of any interface that has the near end's name: an earlier process may have left it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn make(queues: u32) -> anyhow::Result<Self> {
        let namespace = new_namespace().context("cannot make a network namespace for the worker")?;
        let mut netlink = Netlink::open()?;
        if let Some(left) = index_of(&mut netlink, NEAR)? {
            netlink.delete_link(left)?;
        }
        netlink.add_veth(NEAR, FAR, queues)?;
        let near = index_of(&mut netlink, NEAR)?.context("the pair went away")?;
        let far = index_of(&mut netlink, FAR)?.context("the pair went away")?;
        disable_ipv6(NEAR);
        netlink.move_link(far, namespace.as_fd())?;
        // It may have another index there.
        let far = in_namespace(&namespace, || {
            let mut netlink = Netlink::open()?;
            let far = index_of(&mut netlink, FAR)?.context("the pair went away")?;
            disable_ipv6(FAR);
            netlink.set_up_without_arp(far, MTU)?;
            anyhow::Ok(far)
        })??;
        netlink.set_up_without_arp(near, MTU)?;
        // The worker gets packets whose checksums are whole.
        ringwall_xsk::device::Device::lookup(NEAR)?.disable_checksum_offload()?;
        Ok(Self { namespace, near, far })
    }

    /// Frames for which its far end had no room.
    ///
    /// # Errors
    /// The kernel refuses, or the pair is gone.
    pub fn lost(&self) -> anyhow::Result<u64> {
        let links = Netlink::open()?.links()?;
        let near = links.iter().find(|link| link.header.index == self.near);
        near.and_then(|link| {
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Stats64(stats) => Some(stats.tx_dropped),
                _ => None,
            })
        })
        .context("the pair went away")
    }

    /// Runs something in the worker's namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> io::Result<T> {
        in_namespace(&self.namespace, body)
    }
}

fn index_of(netlink: &mut Netlink, name: &str) -> anyhow::Result<Option<u32>> {
    let links = netlink.links()?;
    Ok(links
        .iter()
        .find(|link| name_of(link) == Some(name))
        .map(|link| link.header.index))
}

/// On a thread of its own, which ends in the new namespace.
fn new_namespace() -> io::Result<OwnedFd> {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
                Ok(File::open("/proc/thread-self/ns/net")?.into())
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

fn in_namespace<T: Send>(namespace: &OwnedFd, body: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                rustix::thread::move_into_link_name_space(
                    namespace.as_fd(),
                    Some(LinkNameSpaceType::Network),
                )?;
                Ok(body())
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// Of an interface of the calling thread's namespace. Without the setting there is no IPv6.
fn disable_ipv6(name: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
}
