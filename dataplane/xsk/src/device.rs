//! An interface, seen through ioctl in the calling thread's network namespace.
#![allow(unsafe_code)] // ioctl on structures of our own

use std::{
    ffi::CStr,
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::XskError;

/// Commands of `linux/ethtool.h`.
const GET_DRIVER: u32 = 0x03;
const SET_TX_CHECKSUM: u32 = 0x17;
const GET_FLAGS: u32 = 0x25;
const SET_FLAGS: u32 = 0x26;
const GET_CHANNELS: u32 = 0x3c;
const SET_CHANNELS: u32 = 0x3d;
/// `ETH_FLAG_TXVLAN` and `ETH_FLAG_RXVLAN`.
const FLAG_TX_VLAN: u32 = 1 << 7;
const FLAG_RX_VLAN: u32 = 1 << 8;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    texts: [u8; 140],
    numbers: [u32; 5],
}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

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
    /// Driver name, as ethtool reports it; empty where it does not.
    pub driver: String,
    /// Receive and transmit queues in use: the smaller of both.
    pub queues: u16,
    /// The most queues that it can have.
    pub max_queues: u16,
    /// Administratively up.
    pub up: bool,
}

/// Asks one question after the other about one interface.
struct InterfaceQuery {
    socket: OwnedFd,
    name: String,
}

impl InterfaceQuery {
    fn new(name: &str) -> Result<Self, XskError> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            return Err(XskError::NoInterface(name.to_owned()));
        }
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(XskError::System {
                action: "open a socket".to_owned(),
                source: io::Error::last_os_error(),
            });
        }
        // SAFETY: just opened, nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            socket,
            name: name.to_owned(),
        })
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: `ifreq` is plain data for which zeroes are valid.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from as libc::c_char;
        }
        request
    }

    /// An ioctl whose answer is in the `ifreq` itself.
    fn ask(&self, command: libc::c_ulong) -> io::Result<libc::ifreq> {
        let mut request = self.request();
        // SAFETY: every command given here reads and writes one `ifreq`.
        if unsafe { libc::ioctl(self.socket.as_raw_fd(), command as _, &mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(request)
    }

    /// An ethtool command. `T` is the structure that belongs to the command in its first field.
    fn ethtool<T>(&self, data: &mut T) -> io::Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_data = (data as *mut T).cast();
        // SAFETY: `T` is laid out as the kernel's structure of the command in its first field (callers), so the
        // kernel stays inside it; it outlives the call.
        if unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn channels(&self) -> io::Result<Channels> {
        let mut channels = Channels {
            command: GET_CHANNELS,
            ..Channels::default()
        };
        self.ethtool(&mut channels)?;
        Ok(channels)
    }
}

fn to_u16(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

impl Device {
    /// Looks an interface up.
    ///
    /// # Errors
    /// It does not exist, or the kernel does not answer.
    pub fn lookup(name: &str) -> Result<Self, XskError> {
        let question = InterfaceQuery::new(name)?;
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => XskError::NoInterface(name.to_owned()),
            _ => XskError::system(format!("ask about interface `{name}`"), "CAP_NET_ADMIN", source),
        };
        let index = question.ask(libc::SIOCGIFINDEX as _).map_err(failed)?;
        // SAFETY: the command fills this member of the union, and any bytes are a valid value of it.
        let index = unsafe { index.ifr_ifru.ifru_ifindex };
        let mtu = question.ask(libc::SIOCGIFMTU as _).map_err(failed)?;
        // SAFETY: as above.
        let mtu = unsafe { mtu.ifr_ifru.ifru_mtu };
        let address = question.ask(libc::SIOCGIFHWADDR as _).map_err(failed)?;
        // SAFETY: as above.
        let address = unsafe { address.ifr_ifru.ifru_hwaddr };
        let flags = question.ask(libc::SIOCGIFFLAGS as _).map_err(failed)?;
        // SAFETY: as above.
        let flags = unsafe { flags.ifr_ifru.ifru_flags };
        let mut mac = [0; 6];
        for (to, from) in mac.iter_mut().zip(address.sa_data) {
            *to = from as u8;
        }
        let mut info = DriverInfo {
            command: GET_DRIVER,
            driver: [0; 32],
            texts: [0; 140],
            numbers: [0; 5],
        };
        let driver = match question.ethtool(&mut info) {
            Ok(()) => CStr::from_bytes_until_nul(&info.driver)
                .map(|driver| driver.to_string_lossy().into_owned())
                .unwrap_or_default(),
            Err(_) => String::new(),
        };
        let (queues, max_queues) = match question.channels() {
            Ok(channels) => {
                let now = channels.combined + channels.rx.min(channels.tx);
                let max = channels.max_combined.max(channels.max_rx.min(channels.max_tx));
                (to_u16(now.max(1)), to_u16(max.max(now).max(1)))
            }
            Err(_) => (1, 1),
        };
        Ok(Self {
            name: name.to_owned(),
            index: index as u32,
            mac,
            mtu: mtu as u32,
            driver,
            queues,
            max_queues,
            up: i32::from(flags) & libc::IFF_UP != 0,
        })
    }

    /// Whether packets on it may carry partial checksums: they come from software on this machine.
    pub fn partial_checksums(&self) -> bool {
        matches!(self.driver.as_str(), "veth" | "virtio_net" | "tun")
    }

    /// Numbers of receive, transmit and combined queues in use.
    ///
    /// # Errors
    /// The device does not tell.
    pub fn channels(&self) -> Result<[u32; 3], XskError> {
        let channels = InterfaceQuery::new(&self.name)?.channels().map_err(|source| {
            XskError::system(
                format!("ask interface `{}` for its queues", self.name),
                "CAP_NET_ADMIN",
                source,
            )
        })?;
        Ok([channels.rx, channels.tx, channels.combined])
    }

    /// What [`Self::channels`] will be with so many receive and transmit queues.
    ///
    /// # Errors
    /// The device does not tell.
    pub fn channels_for(&self, queues: u16) -> Result<[u32; 3], XskError> {
        let now = self.channels()?;
        let max = InterfaceQuery::new(&self.name)
            .and_then(|question| {
                question
                    .channels()
                    .map_err(|source| XskError::system("ask for queues", "CAP_NET_ADMIN", source))
            })?
            .max_combined;
        let queues = u32::from(queues);
        Ok(match now {
            [0, 0, _] if max > 0 => [0, 0, queues],
            [_, _, combined] => [queues, queues, combined],
        })
    }

    /// Sets the numbers of receive, transmit and combined queues in use.
    ///
    /// # Errors
    /// The device cannot, or the process may not.
    pub fn set_channels(&self, [rx, tx, combined]: [u32; 3]) -> Result<(), XskError> {
        let question = InterfaceQuery::new(&self.name)?;
        let failed = |source| {
            XskError::system(
                format!(
                    "give interface `{}` {rx} receive, {tx} transmit and {combined} combined queues",
                    self.name
                ),
                "CAP_NET_ADMIN",
                source,
            )
        };
        let mut channels = question.channels().map_err(failed)?;
        channels.command = SET_CHANNELS;
        (channels.rx, channels.tx, channels.combined) = (rx, tx, combined);
        question.ethtool(&mut channels).map_err(failed)
    }

    /// Sets the number of receive and transmit queues in use.
    ///
    /// # Errors
    /// The device cannot, or the process may not.
    pub fn set_queues(&mut self, queues: u16) -> Result<(), XskError> {
        if queues == self.queues {
            return Ok(());
        }
        self.set_channels(self.channels_for(queues)?)?;
        self.queues = queues;
        Ok(())
    }

    /// `ETHTOOL_GFLAGS`: 0 where the device does not tell.
    pub fn vlan_flags(&self) -> u32 {
        let mut value = EthtoolValue {
            command: GET_FLAGS,
            data: 0,
        };
        match InterfaceQuery::new(&self.name).map(|question| question.ethtool(&mut value)) {
            Ok(Ok(())) => value.data,
            _ => 0,
        }
    }

    /// Whether the device takes VLAN tags out of received packets or puts them into sent ones. An AF_XDP socket then
    /// never sees them.
    pub fn offloads_vlan(&self) -> bool {
        self.vlan_flags() & (FLAG_RX_VLAN | FLAG_TX_VLAN) != 0
    }

    /// Turns both VLAN offloads off.
    ///
    /// # Errors
    /// The device cannot, or the process may not.
    pub fn disable_vlan_offload(&self) -> Result<(), XskError> {
        self.set_vlan_flags(0)
    }

    /// Has the kernel finish the checksums of what it sends by this device.
    ///
    /// # Errors
    /// The device cannot, or the process may not.
    pub fn disable_checksum_offload(&self) -> Result<(), XskError> {
        let mut value = EthtoolValue {
            command: SET_TX_CHECKSUM,
            data: 0,
        };
        InterfaceQuery::new(&self.name)?
            .ethtool(&mut value)
            .map_err(|source| {
                XskError::system(
                    format!("turn off the checksum offload of `{}`", self.name),
                    "CAP_NET_ADMIN",
                    source,
                )
            })
    }

    /// Sets both VLAN offloads to what they are in `flags`.
    ///
    /// # Errors
    /// The device cannot, or the process may not.
    pub fn set_vlan_flags(&self, flags: u32) -> Result<(), XskError> {
        const BOTH: u32 = FLAG_RX_VLAN | FLAG_TX_VLAN;
        let question = InterfaceQuery::new(&self.name)?;
        let failed = |source| {
            XskError::system(
                format!("set the VLAN offloads of `{}`", self.name),
                "CAP_NET_ADMIN",
                source,
            )
        };
        let mut value = EthtoolValue {
            command: GET_FLAGS,
            data: 0,
        };
        question.ethtool(&mut value).map_err(failed)?;
        value = EthtoolValue {
            command: SET_FLAGS,
            data: value.data & !BOTH | flags & BOTH,
        };
        question.ethtool(&mut value).map_err(failed)
    }
}
