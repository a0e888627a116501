//! For benchmarks: forwarding inside of XDP, which no firewall in user space can be faster than, and steering to sockets
//! that are not ringwall's.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd},
};

use libbpf_rs::{
    Link, MapCore, MapFlags, OpenObject, ProgramMut,
    skel::{OpenSkel, SkelBuilder},
};

use crate::{
    BpfError,
    error::wrap,
    kernel::interface_index,
    skeleton::peers::{PeersSkel, PeersSkelBuilder},
};

/// The programs, loaded.
pub struct Peers(PeersSkel<'static>);

impl Peers {
    /// Loads them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn load() -> Result<Self, BpfError> {
        // The skeleton borrows its object; both live as long as the process, of which a benchmark needs few.
        let object: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
        PeersSkelBuilder::default()
            .open(object)
            .and_then(OpenSkel::load)
            .map(Self)
            .map_err(|error| wrap("loading the peers' programs", error))
    }

    /// Sends all that an interface receives on a queue to a socket. Until the answer is dropped.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses.
    pub fn steer(&self, interface: &str, queue: u32, socket: BorrowedFd<'_>) -> Result<Link, BpfError> {
        self.0
            .maps
            .sockets
            .update(
                &queue.to_ne_bytes(),
                &socket.as_raw_fd().to_ne_bytes(),
                MapFlags::ANY,
            )
            .map_err(|error| wrap("registering a socket", error))?;
        attach(&self.0.progs.steer, interface)
    }

    /// Sends what one interface receives out of another, packets of known flows only if `knows_flows`: then the first packet
    /// of each makes it known. Until the answer is dropped.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses.
    pub fn forward(&self, from: &str, to: &str, knows_flows: bool) -> Result<Link, BpfError> {
        let out = interface_index(to).ok_or_else(|| BpfError::NoInterface(to.to_owned()))?;
        self.0
            .maps
            .ports
            .update(&0_u32.to_ne_bytes(), &out.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| wrap("naming the port to forward to", error))?;
        let programs = &self.0.progs;
        attach(
            if knows_flows {
                &programs.forward_flows
            } else {
                &programs.forward
            },
            from,
        )
    }
}

fn attach(program: &ProgramMut<'_>, interface: &str) -> Result<Link, BpfError> {
    let index = interface_index(interface).ok_or_else(|| BpfError::NoInterface(interface.to_owned()))?;
    let index =
        i32::try_from(index).map_err(|_| BpfError::system(interface, io::ErrorKind::InvalidInput.into()))?;
    program
        .attach_xdp(index)
        .map_err(|error| wrap(&format!("attaching to `{interface}`"), error))
}
