//! Blocking rtnetlink: requests, dumps, and the stream of changes.
//!
//! No tokio: the dataplane process has a handful of plain threads, and this is one of them.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::kernel_state::is_fixed;

/// Marks neighbours as ringwall's, for `ip neigh` and for whoever takes them back.
const OUR_PROTOCOL: RouteProtocol = RouteProtocol::Other(114);

/// What went wrong in talking to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A socket could not be opened or set up.
    #[error("netlink socket: {0}; ringwall needs CAP_NET_ADMIN in the network namespace of its ports")]
    Socket(#[source] io::Error),
    /// The kernel refused a request.
    #[error("{what}: {source}")]
    Refused {
        /// What was asked.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An answer that could not be read, or none in time.
    #[error("{what}: {reason}")]
    Answer {
        /// What was asked.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl NetlinkError {
    /// The error number of a refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Socket(source) => source.raw_os_error(),
            Self::Answer { .. } => None,
        }
    }
}

/// Longest wait for one answer of the kernel. It answers in its own context, so this is never reached in practice.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a dump that changed while it was read is repeated before its last form is taken.
const DUMP_ATTEMPTS: usize = 8;

/// A socket for requests. One request at a time.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Socket)?;
        socket.bind_auto().map_err(NetlinkError::Socket)?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(NetlinkError::Socket)?;
        // Filters in dump requests are only obeyed in strict mode (kernel 4.20).
        socket
            .set_netlink_get_strict_chk(true)
            .map_err(NetlinkError::Socket)?;
        let _ = socket.set_ext_ack(true);
        Ok(Self { socket, sequence: 0 })
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16, what: &str) -> Result<u32, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags | NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket
            .send(&bytes, 0)
            .map_err(|source| NetlinkError::Refused {
                what: what.to_owned(),
                source,
            })?;
        Ok(self.sequence)
    }

    /// Everything of one kind. Repeated where the kernel says that it changed meanwhile.
    pub fn dump(
        &mut self,
        request: &RouteNetlinkMessage,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut attempt = 1;
        loop {
            let (messages, interrupted) = self.dump_once(request, what)?;
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(messages);
            }
            attempt += 1;
        }
    }

    fn dump_once(
        &mut self,
        request: &RouteNetlinkMessage,
        what: &str,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), NetlinkError> {
        const NLM_F_DUMP_INTR: u16 = 0x10;
        let sequence = self.send(request.clone(), NLM_F_DUMP, what)?;
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            for message in self.answer(what)? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(NetlinkError::Refused {
                            what: what.to_owned(),
                            source: io::Error::from_raw_os_error(-done.code),
                        });
                    }
                    NetlinkPayload::Done(_) => return Ok((found, interrupted)),
                    NetlinkPayload::Error(error) => {
                        return Err(NetlinkError::Refused {
                            what: what.to_owned(),
                            source: error.to_io(),
                        });
                    }
                    NetlinkPayload::InnerMessage(inner) => found.push(inner),
                    _ => {}
                }
            }
        }
    }

    /// Asks for a change and waits for the kernel's word on it.
    pub fn change(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: &str,
    ) -> Result<(), NetlinkError> {
        let sequence = self.send(message, flags | NLM_F_ACK, what)?;
        loop {
            for message in self.answer(what)? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                if let NetlinkPayload::Error(error) = message.payload {
                    return match error.code {
                        None => Ok(()),
                        Some(_) => Err(NetlinkError::Refused {
                            what: what.to_owned(),
                            source: error.to_io(),
                        }),
                    };
                }
            }
        }
    }

    fn answer(&self, what: &str) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, NetlinkError> {
        if !readable(&self.socket, ANSWER_TIMEOUT).map_err(NetlinkError::Socket)? {
            return Err(NetlinkError::Answer {
                what: what.to_owned(),
                reason: "the kernel did not answer".to_owned(),
            });
        }
        let (bytes, _) = self
            .socket
            .recv_from_full()
            .map_err(|source| NetlinkError::Refused {
                what: what.to_owned(),
                source,
            })?;
        Ok(messages(&bytes))
    }

    /// All links.
    pub fn links(&mut self) -> Result<Vec<LinkMessage>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        Ok(self
            .dump(&request, "list the interfaces")?
            .into_iter()
            .filter_map(|m| match m {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })
            .collect())
    }

    /// All addresses of both families.
    pub fn addresses(&mut self) -> Result<Vec<AddressMessage>, NetlinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = AddressMessage::default();
            message.header.family = family;
            let request = RouteNetlinkMessage::GetAddress(message);
            found.extend(
                self.dump(&request, "list the addresses")?
                    .into_iter()
                    .filter_map(|m| match m {
                        RouteNetlinkMessage::NewAddress(address) => Some(address),
                        _ => None,
                    }),
            );
        }
        Ok(found)
    }

    /// What is known of an interface of another network namespace, by the number that this namespace has for it: its Ethernet
    /// address and its addresses.
    ///
    /// # Errors
    /// The namespace or the interface is gone.
    pub fn far_end(
        &mut self,
        namespace: i32,
        index: u32,
    ) -> Result<(LinkMessage, Vec<AddressMessage>), NetlinkError> {
        /// `IFA_TARGET_NETNSID`.
        const TARGET_NAMESPACE: u16 = 10;
        let what = format!("look at interface {index} of network namespace {namespace}");
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfNetnsId(namespace));
        let links = self.dump(&RouteNetlinkMessage::GetLink(message), &what)?;
        let link = links
            .into_iter()
            .find_map(|m| match m {
                RouteNetlinkMessage::NewLink(link) if link.header.index == index => Some(link),
                _ => None,
            })
            .ok_or_else(|| NetlinkError::Answer {
                what: what.clone(),
                reason: "there is no such interface".to_owned(),
            })?;
        let mut addresses = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = AddressMessage::default();
            message.header.family = family;
            message.attributes.push(AddressAttribute::Other(DefaultNla::new(
                TARGET_NAMESPACE,
                namespace.to_ne_bytes().to_vec(),
            )));
            addresses.extend(
                self.dump(&RouteNetlinkMessage::GetAddress(message), &what)?
                    .into_iter()
                    .filter_map(|m| match m {
                        RouteNetlinkMessage::NewAddress(found) if found.header.index == index => Some(found),
                        _ => None,
                    }),
            );
        }
        Ok((link, addresses))
    }

    /// Moves an interface to another network namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn move_link(&mut self, link: u32, namespace: BorrowedFd<'_>) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message
            .attributes
            .push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        self.change(
            RouteNetlinkMessage::SetLink(message),
            0,
            &format!("move interface {link} to another network namespace"),
        )
    }

    /// Sets an interface up that answers no ARP and asks for nobody.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_up_without_arp(&mut self, link: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.change(
            RouteNetlinkMessage::SetLink(message),
            0,
            &format!("set interface {link} up"),
        )
    }

    /// The routes of the main table, both families.
    pub fn routes(&mut self) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.kind = RouteType::Unspec;
            message
                .attributes
                .push(RouteAttribute::Table(u32::from(RouteHeader::RT_TABLE_MAIN)));
            let request = RouteNetlinkMessage::GetRoute(message);
            let routes = match self.dump(&request, "list the routes of table main") {
                Ok(routes) => routes,
                // A namespace in which no route was ever added has no table yet.
                Err(error) if error.errno() == Some(rustix::io::Errno::NOENT.raw_os_error()) => continue,
                Err(error) => return Err(error),
            };
            found.extend(routes.into_iter().filter_map(|m| match m {
                RouteNetlinkMessage::NewRoute(route) => Some(route),
                _ => None,
            }));
        }
        Ok(found)
    }

    /// All neighbours of both families.
    pub fn neighbours(&mut self) -> Result<Vec<NeighbourMessage>, NetlinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            let request = RouteNetlinkMessage::GetNeighbour(message);
            found.extend(
                self.dump(&request, "list the neighbours")?
                    .into_iter()
                    .filter_map(|m| match m {
                        RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
                        _ => None,
                    }),
            );
        }
        Ok(found)
    }

    /// Makes the kernel resolve a neighbour now and keep it resolved, although it sees none of our traffic to it. False
    /// where an administrator has set the neighbour: that stays as it is.
    pub fn manage_neighbour(&mut self, link: u32, address: IpAddr) -> Result<bool, NetlinkError> {
        let mut message = neighbour(link, address);
        message.header.flags = NeighbourFlags::ExtLearned; // keeps the garbage collector away
        message.attributes.extend([
            NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed),
            NeighbourAttribute::Protocol(OUR_PROTOCOL),
        ]);
        let what = format!("resolve {address} on interface {link}");
        // Managing one that is there would make a permanent one dynamic: only what is not there is made in one step.
        let request = RouteNetlinkMessage::NewNeighbour(message);
        match self.change(request.clone(), NLM_F_CREATE | NLM_F_EXCL, &what) {
            Err(error) if error.errno() == Some(rustix::io::Errno::EXIST.raw_os_error()) => {}
            other => return other.map(|()| true),
        }
        if self
            .neighbour(link, address)?
            .is_some_and(|found| is_fixed(&found))
        {
            return Ok(false);
        }
        self.change(request, NLM_F_CREATE | NLM_F_REPLACE, &what)
            .map(|()| true)
    }

    fn neighbour(&mut self, link: u32, address: IpAddr) -> Result<Option<NeighbourMessage>, NetlinkError> {
        let mut message = neighbour(link, address);
        message.header.kind = RouteType::Unspec;
        let what = format!("ask for {address} on interface {link}");
        let sequence = self.send(RouteNetlinkMessage::GetNeighbour(message), 0, &what)?;
        loop {
            for message in self.answer(&what)? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(found)) => {
                        return Ok(Some(found));
                    }
                    NetlinkPayload::Error(error) => {
                        let source = error.to_io();
                        if source.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error()) {
                            return Ok(None);
                        }
                        return Err(NetlinkError::Refused { what, source });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Forgets every neighbour that [`Self::manage_neighbour`] made, in this process or an earlier one.
    pub fn forget_managed(&mut self) -> Result<(), NetlinkError> {
        for message in self.neighbours()? {
            let ours = message
                .attributes
                .contains(&NeighbourAttribute::Protocol(OUR_PROTOCOL));
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
                _ => None,
            });
            if let Some(address) = address.filter(|_| ours && !is_fixed(&message)) {
                match self.forget_neighbour(message.header.ifindex, address) {
                    Err(error) if error.errno() != Some(rustix::io::Errno::NOENT.raw_os_error()) => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Forgets a neighbour.
    pub fn forget_neighbour(&mut self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        self.change(
            RouteNetlinkMessage::DelNeighbour(neighbour(link, address)),
            0,
            &format!("forget {address} on interface {link}"),
        )
    }

    /// Adds an address to an interface; says whether it was not there before. Its scope is the host: the kernel answers
    /// for it and does not choose it as a source.
    pub fn add_address(&mut self, link: u32, address: IpAddr, prefix: u8) -> Result<bool, NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family_of(address);
        message.header.index = link;
        message.header.prefix_len = prefix;
        message.attributes.push(AddressAttribute::Local(address));
        message.attributes.push(AddressAttribute::Address(address));
        if address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
        } else {
            message.header.scope = AddressScope::Host;
        }
        let added = self.change(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
            &format!("add {address}/{prefix} to interface {link}"),
        );
        match added {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(rustix::io::Errno::EXIST.raw_os_error()) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes an address off an interface.
    pub fn delete_address(&mut self, link: u32, address: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family_of(address);
        message.header.index = link;
        message.header.prefix_len = prefix;
        message.attributes.push(AddressAttribute::Local(address));
        self.change(
            RouteNetlinkMessage::DelAddress(message),
            0,
            &format!("take {address}/{prefix} off interface {link}"),
        )
    }

    /// Sets an interface up, and its MTU where one is given.
    pub fn set_link(&mut self, link: u32, mtu: Option<u32>) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        if let Some(mtu) = mtu {
            message.attributes.push(LinkAttribute::Mtu(mtu));
        }
        self.change(
            RouteNetlinkMessage::SetLink(message),
            0,
            &format!("set interface {link} up"),
        )
    }

    /// Sets an interface's MTU, and nothing else.
    pub fn set_mtu(&mut self, link: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.change(
            RouteNetlinkMessage::SetLink(message),
            0,
            &format!("set the MTU of interface {link} to {mtu}"),
        )
    }

    /// Sets an interface down: nothing goes in or out by it.
    pub fn set_down(&mut self, link: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.header.change_mask = LinkFlags::Up;
        self.change(
            RouteNetlinkMessage::SetLink(message),
            0,
            &format!("set interface {link} down"),
        )
    }

    /// Makes an interface take in frames for every Ethernet address, or only for its own.
    pub fn set_promiscuous(&mut self, link: u32, promiscuous: bool) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.header.change_mask = LinkFlags::Promisc;
        if promiscuous {
            message.header.flags = LinkFlags::Promisc;
        }
        let (what, how) = (
            "promiscuous mode of interface",
            if promiscuous { "on" } else { "off" },
        );
        self.change(
            RouteNetlinkMessage::SetLink(message),
            0,
            &format!("set {what} {link} {how}"),
        )
    }

    /// Makes a veth pair whose ends have `queues` queues each way.
    pub fn add_veth(&mut self, name: &str, peer: &str, queues: u32) -> Result<(), NetlinkError> {
        let mut other = LinkMessage::default();
        other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        other.attributes.push(LinkAttribute::NumTxQueues(queues));
        other.attributes.push(LinkAttribute::NumRxQueues(queues));
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::NumTxQueues(queues));
        message.attributes.push(LinkAttribute::NumRxQueues(queues));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        self.change(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
            &format!("make the veth pair {name}, {peer}"),
        )
    }

    /// Marks an interface, for `ip link` and for ourselves.
    pub fn set_alias(&mut self, link: u32, alias: &str) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        self.change(
            RouteNetlinkMessage::SetLink(message),
            0,
            &format!("set the alias of interface {link}"),
        )
    }

    /// Deletes an interface.
    pub fn delete_link(&mut self, link: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        self.change(
            RouteNetlinkMessage::DelLink(message),
            0,
            &format!("delete interface {link}"),
        )
    }
}

/// The name of an interface.
pub fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn neighbour(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(address);
    message.header.ifindex = link;
    message.header.kind = RouteType::Unspec;
    message
        .attributes
        .push(NeighbourAttribute::Destination(NeighbourAddress::from(address)));
    message
}

fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The messages of one datagram; what cannot be read is left out (a newer kernel may say more than we understand).
fn messages(bytes: &[u8]) -> Vec<NetlinkMessage<RouteNetlinkMessage>> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while rest.len() >= 16 {
        let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        if length < 16 || length > rest.len() {
            break;
        }
        match NetlinkMessage::deserialize(&rest[..length]) {
            Ok(message) => found.push(message),
            Err(error) => tracing::debug!(%error, "netlink message not understood"),
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    found
}

/// Whether a socket has something to read within a time.
pub(super) fn readable(socket: &impl AsFd, timeout: Duration) -> io::Result<bool> {
    readable_of([socket.as_fd()], timeout).map(|[ready]| ready)
}

/// Waits until one of these can be read, or the time is up; which can.
fn readable_of<const N: usize>(sockets: [BorrowedFd<'_>; N], timeout: Duration) -> io::Result<[bool; N]> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timespec = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut waiting = sockets.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN));
        match poll(&mut waiting, Some(&timespec)) {
            Ok(_) => return Ok(waiting.map(|it| !it.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What [`ChangeStream::wait`] saw.
#[derive(Debug)]
pub enum KernelChange {
    /// These changed.
    Messages(Vec<RouteNetlinkMessage>),
    /// Messages were lost: everything has to be read again.
    Overrun,
}

/// The kernel's stream of changes of links, addresses, routes, neighbours and interfaces' settings.
pub struct ChangeStream {
    socket: Socket,
    /// A setting changed since [`Self::settings_changed`] was asked.
    settings: AtomicBool,
}

/// Groups of rtnetlink: link, neigh, IPv4 and IPv6 addresses and routes, settings of both.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 9, 11, 24, 25];
/// `RTM_NEWNETCONF`: some settings of an interface changed (forwarding and a few others).
const NEW_SETTINGS: u16 = 80;
/// Room for a few thousand changes between two reads.
const RECEIVE_BUFFER: usize = 4 << 20;

impl ChangeStream {
    /// Subscribes. What changes from now on is seen; dump after this, never before.
    pub fn subscribe() -> Result<Self, NetlinkError> {
        Self::of(&GROUPS)
    }

    /// Subscribes to changes of links alone.
    pub fn of_links() -> Result<Self, NetlinkError> {
        Self::of(&GROUPS[..1])
    }

    /// Subscribes to changes of links and addresses.
    pub fn of_links_and_addresses() -> Result<Self, NetlinkError> {
        const ADDRESSES: [u32; 2] = [5, 9];
        Self::of(&[&GROUPS[..1], &ADDRESSES[..]].concat())
    }

    fn of(groups: &[u32]) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Socket)?;
        socket.bind_auto().map_err(NetlinkError::Socket)?;
        for &group in groups {
            socket.add_membership(group).map_err(NetlinkError::Socket)?;
        }
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)
                .map_err(|error| NetlinkError::Socket(error.into()))?;
        }
        socket.set_non_blocking(true).map_err(NetlinkError::Socket)?;
        Ok(Self {
            socket,
            settings: AtomicBool::new(false),
        })
    }

    /// Whether settings of interfaces changed since this was asked last. Which ones is not said, and of some the kernel
    /// says nothing.
    pub fn settings_changed(&self) -> bool {
        self.settings.swap(false, Ordering::Relaxed)
    }

    /// Waits up to `timeout` and takes what is there; an empty list when the time is up.
    pub fn wait(&self, timeout: Duration) -> Result<KernelChange, NetlinkError> {
        let mut found = Vec::new();
        if !readable(&self.socket, timeout).map_err(NetlinkError::Socket)? {
            return Ok(KernelChange::Messages(found));
        }
        loop {
            match self.socket.recv_from_full() {
                Ok((bytes, _)) => {
                    if bytes.get(4..6) == Some(&NEW_SETTINGS.to_ne_bytes()) {
                        self.settings.store(true, Ordering::Relaxed);
                        continue;
                    }
                    found.extend(messages(&bytes).into_iter().filter_map(|m| match m.payload {
                        NetlinkPayload::InnerMessage(inner) => Some(inner),
                        _ => None,
                    }))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(KernelChange::Messages(found));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                    return Ok(KernelChange::Overrun);
                }
                Err(error) => return Err(NetlinkError::Socket(error)),
            }
        }
    }

    /// Waits up to `timeout` for a change, or for another descriptor to become readable; whether there are changes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn is_ready(&self, timeout: Duration, other: &impl AsFd) -> Result<bool, NetlinkError> {
        let [changes, _] =
            readable_of([self.socket.as_fd(), other.as_fd()], timeout).map_err(NetlinkError::Socket)?;
        Ok(changes)
    }

    /// The descriptor that becomes readable when something changed.
    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
