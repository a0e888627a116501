//! An interface by which frames are sent and received as they are.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto, socket,
    },
};

use crate::{BedError, Result, netns::Netns};

/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u8 = 4;
/// Longest frame that is received whole, in bytes.
const LONGEST: usize = 4096;

/// An interface by which frames are sent and received as they are.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
    address: LinkAddr,
    what: String,
}

impl Tap {
    /// Opens an interface of a namespace. Frames that arrive from now on can be received.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses the socket.
    pub fn open(ns: &Netns, interface: &str) -> Result<Self> {
        let what = format!("{interface} of {}", ns.name());
        let open = || -> io::Result<(OwnedFd, LinkAddr)> {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_NONBLOCK,
                SockProtocol::EthAll,
            )?;
            let address = link_address(interface)?;
            bind(socket.as_raw_fd(), &address)?;
            Ok((socket, address))
        };
        let (socket, address) = ns
            .run(open)?
            .map_err(|error| BedError::new(format!("cannot open {what}"), error))?;
        Ok(Self {
            socket,
            address,
            what,
        })
    }

    /// The Ethernet address of the interface; zeros where it has none.
    pub fn mac(&self) -> [u8; 6] {
        self.address.addr().unwrap_or_default()
    }

    /// Sends a frame, which begins with its Ethernet header.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        sendto(self.socket.as_raw_fd(), frame, &self.address, MsgFlags::empty())
            .map(drop)
            .map_err(|error| BedError::new(format!("cannot send by {}", self.what), error))
    }

    /// The next frame that arrived, with its Ethernet header; None where none does in time. The kernel takes the outer VLAN tag
    /// out of what it shows.
    ///
    /// # Errors
    /// The kernel refuses to show one.
    pub fn receive(&self, within: Duration) -> Result<Option<Vec<u8>>> {
        let refused = |error| BedError::new(format!("cannot receive by {}", self.what), error);
        let patience = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
        let mut buffer = [0; LONGEST];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                // What this end sends itself may quote what it got.
                Ok((_, Some(from))) if from.pkttype() == OUTGOING => {}
                Ok((length, _)) => return Ok(Some(buffer[..length].to_vec())),
                Err(Errno::EAGAIN) => {
                    let mut waiting = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
                    if poll(&mut waiting, patience).map_err(refused)? == 0 {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(refused(error)),
            }
        }
    }
}

/// The Ethernet address of an interface of a namespace.
///
/// # Errors
/// There is no such interface.
pub fn mac_of(ns: &Netns, interface: &str) -> Result<[u8; 6]> {
    ns.run(|| link_address(interface))?
        .map(|address| address.addr().unwrap_or_default())
        .map_err(|error| BedError::new(format!("cannot read {interface} of {}", ns.name()), error))
}

/// Of an interface of the namespace that the thread is in.
fn link_address(interface: &str) -> io::Result<LinkAddr> {
    getifaddrs()?
        .filter(|it| it.interface_name == interface)
        .find_map(|it| it.address?.as_link_addr().copied())
        .ok_or_else(|| io::Error::other("there is no such interface"))
}
