//! netfilter over netlink: as many messages of nf_tables as one small table takes. A batch is a transaction: all of it or nothing.
//!
//! * [`conntrack`] what connection tracking knows of an address.

pub mod conntrack;

use std::{io, time::Duration};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::netlink::{NetlinkError, readable};

/// Whose packets a table sees (`NFPROTO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// What a bridge of the kernel takes from one port to another, or to the machine.
    Bridge = 7,
}

/// Hooks have the same numbers in both families (`NF_INET_*`, `NF_BR_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// Whatever came in, before it is delivered or forwarded.
    Prerouting = 0,
    /// What came in by one interface and goes out by another.
    Forward = 2,
    /// Whatever goes out, forwarded or the machine's own.
    Postrouting = 4,
}

/// What a packet has that belongs to an interface: keys of `meta` (`NFT_META_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Meta {
    /// Index of the interface that it came by, as u32 in host order.
    Iif = 4,
    /// Index of the interface that it leaves by, likewise.
    Oif = 5,
    /// Name of the interface that it came by: 16 bytes, the rest zero.
    IifName = 6,
    /// Name of the interface that it leaves by, likewise.
    OifName = 7,
    /// Its EtherType, in network byte order.
    EtherType = 1,
}

/// A register of 16 bytes; the next one lies behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Register {
    /// `NFT_REG_1`.
    First = 1,
    /// `NFT_REG_2`.
    Second = 2,
}

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const ERROR: u16 = 2;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const GET_TABLE: u16 = NEW_TABLE + 1;
const DELETE_TABLE: u16 = NEW_TABLE + 2;
const NEW_CHAIN: u16 = NEW_TABLE + 3;
const NEW_RULE: u16 = NEW_TABLE + 6;
const GET_RULE: u16 = NEW_TABLE + 7;
const NEW_FLOWTABLE: u16 = NEW_TABLE + 22;
const GET_FLOWTABLE: u16 = NEW_TABLE + 23;
const NEW_SET: u16 = NEW_TABLE + 9;
const NEW_ELEMENT: u16 = NEW_TABLE + 12;
const DELETE_ELEMENT: u16 = NEW_TABLE + 14;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const DUMP: u16 = 0x300;
const DONE: u16 = 3;

/// Bytes of a message's header.
const HEADER: usize = 16;
/// Bytes of the header of nf_tables behind it (`struct nfgenmsg`).
const HEADER_OF_TABLES: usize = 4;
/// Elements in one message: its attributes have lengths of 16 bits.
const ELEMENTS: usize = 500;
/// Room for a batch with tens of thousands of elements.
const SEND_BUFFER: usize = 4 << 20;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len() as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    const NESTED: u16 = 1 << 15;
    attribute(kind | NESTED, &parts.concat())
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

/// One step of a rule.
pub struct Expression(Vec<u8>);

impl Expression {
    fn new(name: &str, data: &[Vec<u8>]) -> Self {
        Self(nested(1, &[text(1, name), nested(2, data)]))
    }

    /// Loads what a packet has.
    pub fn meta(key: Meta, into: Register) -> Self {
        Self::new("meta", &[number(1, into as u32), number(2, key as u32)])
    }

    /// Goes on if a register begins with these bytes, of which there may be 16.
    pub fn begins_with(register: Register, bytes: &[u8]) -> Self {
        let data = nested(3, &[attribute(1, bytes)]);
        Self::new("cmp", &[number(1, register as u32), number(2, 0), data])
    }

    /// Goes on if what begins in a register is not in a set.
    pub fn not_in(register: Register, set: &str) -> Self {
        const INVERTED: u32 = 1;
        let of = [text(1, set), number(2, register as u32), number(5, INVERTED)];
        Self::new("lookup", &of)
    }

    /// Goes on if what begins in a register is in a set.
    pub fn is_in(register: Register, set: &str) -> Self {
        Self::new("lookup", &[text(1, set), number(2, register as u32)])
    }

    /// Loads bytes of the packet's network header.
    pub fn network_header(offset: u32, length: u32, into: Register) -> Self {
        const NETWORK: u32 = 1;
        let of = [
            number(1, into as u32),
            number(2, NETWORK),
            number(3, offset),
            number(4, length),
        ];
        Self::new("payload", &of)
    }

    /// Clears the bits of a register that are not in a mask.
    pub fn mask(register: Register, mask: &[u8]) -> Self {
        let of = [
            number(1, register as u32),
            number(2, register as u32),
            number(3, mask.len() as u32),
            nested(4, &[attribute(1, mask)]),
            nested(5, &[attribute(1, &vec![0; mask.len()])]),
        ];
        Self::new("bitwise", &of)
    }

    /// Counts what comes here.
    pub fn counter() -> Self {
        Self::new("counter", &[])
    }

    /// Drops what comes here.
    pub fn drop() -> Self {
        Self::verdict(0)
    }

    /// Ends the chain for what comes here, and lets it pass: other chains have their say.
    pub fn accept() -> Self {
        Self::verdict(1)
    }

    fn verdict(code: u32) -> Self {
        let verdict = nested(2, &[nested(2, &[number(1, code)])]);
        Self::new("immediate", &[number(1, 0), verdict])
    }
}

/// A transaction to be.
pub struct Batch {
    bytes: Vec<u8>,
    /// Where the message begins that was added last.
    last: usize,
    sequence: u32,
}

impl Default for Batch {
    fn default() -> Self {
        let mut batch = Self::empty();
        batch.add(BATCH_BEGIN, 0, 0, &[]);
        batch
    }
}

impl Batch {
    /// Messages that are no transaction.
    fn empty() -> Self {
        Self {
            bytes: Vec::new(),
            last: 0,
            sequence: 0,
        }
    }

    fn add(&mut self, what: u16, flags: u16, family: u8, attributes: &[Vec<u8>]) {
        self.add_to(SUBSYSTEM, what, flags, family, attributes);
    }

    fn add_to(&mut self, subsystem: u16, what: u16, flags: u16, family: u8, attributes: &[Vec<u8>]) {
        self.sequence += 1;
        self.last = self.bytes.len();
        // The resource of a batch is the subsystem, that of other messages is not looked at.
        let head = [[family, 0], subsystem.to_be_bytes()].concat();
        let body = [head, attributes.concat()].concat();
        let length = (HEADER + body.len()) as u32;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&what.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&body);
    }

    /// Makes a table that may be there already.
    pub fn table(&mut self, family: Family, name: &str) {
        self.add(NEW_TABLE, CREATE, family as u8, &[text(1, name)]);
    }

    /// Deletes a table that is there, with all that it holds.
    pub fn delete_table(&mut self, family: Family, name: &str) {
        self.add(DELETE_TABLE, 0, family as u8, &[text(1, name)]);
    }

    /// Makes a set of names and indices of interfaces.
    pub fn set_of_interfaces(&mut self, family: Family, table: &str, name: &str) {
        // For whoever lists it: an interface's name and index in `nft`, six bits each.
        self.set(family, table, name, 41 << 6 | 20, ELEMENT, None);
    }

    /// Makes a set of indices of interfaces that holds up to `capacity`: one of known size is looked up twice as fast.
    pub fn set_of_indices(&mut self, family: Family, table: &str, name: &str, capacity: u32) {
        self.set(family, table, name, 20, size_of::<u32>(), Some(capacity));
    }

    /// `kind` is what `nft` calls the elements, for whoever lists them.
    fn set(
        &mut self,
        family: Family,
        table: &str,
        name: &str,
        kind: u32,
        bytes: usize,
        capacity: Option<u32>,
    ) {
        let mut attributes = vec![
            text(1, table),
            text(2, name),
            number(3, 0),
            number(4, kind),
            number(5, bytes as u32),
            number(10, self.sequence), // its number in the transaction
        ];
        attributes.extend(capacity.map(|capacity| nested(9, &[number(1, capacity)])));
        self.add(NEW_SET, CREATE, family as u8, &attributes);
    }

    /// Adds indices of interfaces to a set; those that are in it stay.
    pub fn add_indices(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        indices: impl IntoIterator<Item = u32>,
    ) {
        let elements: Vec<Vec<u8>> = indices.into_iter().map(index_element).collect();
        for elements in elements.chunks(ELEMENTS) {
            let attributes = [text(1, table), text(2, set), nested(3, elements)];
            self.add(NEW_ELEMENT, CREATE, family as u8, &attributes);
        }
    }

    /// Removes indices from a set that they are in.
    pub fn remove_indices(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        indices: impl IntoIterator<Item = u32>,
    ) {
        let elements: Vec<Vec<u8>> = indices.into_iter().map(index_element).collect();
        for elements in elements.chunks(ELEMENTS) {
            let attributes = [text(1, table), text(2, set), nested(3, elements)];
            self.add(DELETE_ELEMENT, 0, family as u8, &attributes);
        }
    }

    /// Makes a chain that a hook runs and that accepts what none of its rules drops.
    pub fn chain(&mut self, family: Family, table: &str, name: &str, hook: Hook, priority: i32) {
        const ACCEPT: u32 = 1;
        let place = nested(4, &[number(1, hook as u32), number(2, priority as u32)]);
        let attributes = [
            text(1, table),
            text(3, name),
            place,
            number(5, ACCEPT),
            text(7, "filter"),
        ];
        self.add(NEW_CHAIN, CREATE, family as u8, &attributes);
    }

    /// Appends a rule.
    pub fn rule(&mut self, family: Family, table: &str, chain: &str, steps: &[Expression]) {
        let steps: Vec<Vec<u8>> = steps.iter().map(|step| step.0.clone()).collect();
        let attributes = [text(1, table), text(2, chain), nested(4, &steps)];
        self.add(NEW_RULE, CREATE | APPEND, family as u8, &attributes);
    }

    /// Adds interfaces to a set; those that are in it stay.
    pub fn add_interfaces<'a>(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        interfaces: impl IntoIterator<Item = (&'a str, u32)>,
    ) {
        let elements: Vec<Vec<u8>> = interfaces.into_iter().map(element).collect();
        for elements in elements.chunks(ELEMENTS) {
            let attributes = [text(1, table), text(2, set), nested(3, elements)];
            self.add(NEW_ELEMENT, CREATE, family as u8, &attributes);
        }
    }

    /// Removes an interface from a set that it is in.
    pub fn remove_interface(&mut self, family: Family, table: &str, set: &str, interface: (&str, u32)) {
        let elements = nested(3, &[element(interface)]);
        let attributes = [text(1, table), text(2, set), elements];
        self.add(DELETE_ELEMENT, 0, family as u8, &attributes);
    }
}

/// Bytes of a name of an interface, the zero at its end included.
const NAME: usize = 16;
/// Bytes of a name and an index, as [`Meta`] loads them.
const ELEMENT: usize = NAME + 4;

fn element((name, index): (&str, u32)) -> Vec<u8> {
    let key = [&padded(name)[..], &index.to_ne_bytes()].concat();
    nested(1, &[nested(1, &[attribute(1, &key)])])
}

fn index_element(index: u32) -> Vec<u8> {
    nested(1, &[nested(1, &[attribute(1, &index.to_ne_bytes())])])
}

/// A name of an interface as [`Meta`] loads it.
pub fn padded(name: &str) -> [u8; NAME] {
    let mut bytes = [0; NAME];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(NAME - 1)) {
        *to = from;
    }
    bytes
}

/// A socket for requests to nf_tables. One request at a time.
pub struct Netfilter(Socket);

impl Netfilter {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel has no netfilter, or the process no right to open it.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(NetlinkError::Socket)?;
        socket.bind_auto().map_err(NetlinkError::Socket)?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(NetlinkError::Socket)?;
        if rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER).is_err() {
            rustix::net::sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)
                .map_err(|error| NetlinkError::Socket(error.into()))?;
        }
        Ok(Self(socket))
    }

    /// Does all of a batch, or nothing.
    ///
    /// # Errors
    /// The kernel refuses one of its messages. The socket should not be used again.
    pub fn commit(&self, mut batch: Batch, what: &str) -> Result<(), NetlinkError> {
        // The kernel answers the last message, whatever becomes of those before.
        if let Some(flags) = batch.bytes.get_mut(batch.last + 6..batch.last + 8) {
            flags.copy_from_slice(&(u16::from_ne_bytes([flags[0], flags[1]]) | ACK).to_ne_bytes());
        }
        let last = batch.sequence;
        batch.add(BATCH_END, 0, 0, &[]);
        self.send(&batch.bytes, what)?;
        let mut refusal = None;
        loop {
            for answer in self.answers(what)? {
                if let Some(error) = answer.error.filter(|code| *code != 0) {
                    refusal.get_or_insert(error);
                }
                // The first is answered where the transaction as a whole fails.
                if answer.sequence != last && answer.sequence != 1 {
                    continue;
                }
                return match refusal {
                    None => Ok(()),
                    Some(code) => Err(refused(what, code)),
                };
            }
        }
    }

    /// Whether a table is there.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn has_table(&self, family: Family, name: &str) -> Result<bool, NetlinkError> {
        let what = "look for a table";
        let mut request = Batch::empty();
        request.add(GET_TABLE, 0, family as u8, &[text(1, name)]);
        self.send(&request.bytes, what)?;
        let answer = self.answers(what)?.into_iter().next();
        let absent = -rustix::io::Errno::NOENT.raw_os_error();
        match answer.and_then(|answer| answer.error) {
            None => Ok(true),
            Some(code) if code == absent => Ok(false),
            Some(code) => Err(refused(what, code)),
        }
    }

    /// Packets that the counters of a table's rules have seen; 0 if there is no such table.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn counted(&self, family: Family, table: &str) -> Result<u64, NetlinkError> {
        let what = "read the counters of a table";
        let mut request = Batch::empty();
        request.add(GET_RULE, DUMP, family as u8, &[text(1, table)]);
        self.send(&request.bytes, what)?;
        let mut counted = 0;
        loop {
            for answer in self.answers(what)? {
                if let Some(code) = answer.error.filter(|code| *code != 0) {
                    return Err(refused(what, code));
                }
                if answer.kind == DONE || answer.kind == ERROR {
                    return Ok(counted);
                }
                counted += counters(answer.body.get(HEADER_OF_TABLES..).unwrap_or_default());
            }
        }
    }

    /// The flowtables of every family: the table and the name of each.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn flowtables(&self) -> Result<Vec<(String, String)>, NetlinkError> {
        const ANY_FAMILY: u8 = 0;
        let what = "list the flowtables";
        let mut request = Batch::empty();
        request.add(GET_FLOWTABLE, DUMP, ANY_FAMILY, &[]);
        self.send(&request.bytes, what)?;
        let mut found = Vec::new();
        loop {
            for answer in self.answers(what)? {
                if let Some(code) = answer.error.filter(|code| *code != 0) {
                    return Err(refused(what, code));
                }
                if answer.kind == DONE || answer.kind == ERROR {
                    return Ok(found);
                }
                if answer.kind != NEW_FLOWTABLE {
                    continue;
                }
                found.push(flowtable(answer.body.get(HEADER_OF_TABLES..).unwrap_or_default()));
            }
        }
    }

    fn send(&self, bytes: &[u8], what: &str) -> Result<(), NetlinkError> {
        let sent = self.0.send(bytes, 0);
        sent.map(|_| ()).map_err(|source| NetlinkError::Refused {
            what: what.to_owned(),
            source,
        })
    }

    fn answers(&self, what: &str) -> Result<Vec<Answer>, NetlinkError> {
        if !readable(&self.0, ANSWER_TIMEOUT).map_err(NetlinkError::Socket)? {
            return Err(NetlinkError::Answer {
                what: what.to_owned(),
                reason: "the kernel did not answer".to_owned(),
            });
        }
        let (bytes, _) = self.0.recv_from_full().map_err(|source| NetlinkError::Refused {
            what: what.to_owned(),
            source,
        })?;
        Ok(answers(&bytes))
    }
}

struct Answer {
    kind: u16,
    sequence: u32,
    /// What follows the message's header.
    body: Vec<u8>,
    /// 0 or a negative number of an error; None where it is a message of another kind.
    error: Option<i32>,
}

/// The messages of one datagram.
fn answers(bytes: &[u8]) -> Vec<Answer> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while let Some((head, _)) = rest.split_at_checked(HEADER) {
        let word = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
        let length = u32::from_ne_bytes(word(0)) as usize;
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let body = rest.get(HEADER..length).unwrap_or_default();
        let code = body.first_chunk().map(|code| i32::from_ne_bytes(*code));
        found.push(Answer {
            kind,
            sequence: u32::from_ne_bytes(word(8)),
            body: body.to_vec(),
            error: if kind == ERROR { code } else { None },
        });
        rest = rest
            .get(length.max(HEADER).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    found
}

/// The attributes in some bytes: kinds, without flags, and values.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let (head, _) = rest.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[2], head[3]]) & KIND, value))
    })
}

/// The table and the name of a flowtable, of its attributes.
fn flowtable(of: &[u8]) -> (String, String) {
    const TABLE: u16 = 1;
    const NAME: u16 = 2;
    let text = |wanted| {
        let value = attributes(of).find(|(kind, _)| *kind == wanted);
        value.map_or(String::new(), |(_, bytes)| {
            String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
        })
    };
    (text(TABLE), text(NAME))
}

/// Packets that the counters of one rule have seen, of its attributes.
fn counters(rule: &[u8]) -> u64 {
    const EXPRESSIONS: u16 = 4;
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    const PACKETS: u16 = 2;
    let of =
        |bytes, wanted| attributes(bytes).filter_map(move |(kind, value)| (kind == wanted).then_some(value));
    of(rule, EXPRESSIONS)
        .flat_map(attributes)
        .filter(|(_, expression)| of(expression, NAME).any(|name| name == b"counter\0"))
        .flat_map(|(_, expression)| of(expression, DATA))
        .flat_map(|data| of(data, PACKETS))
        .filter_map(|packets| packets.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)))
        .sum()
}

fn refused(what: &str, code: i32) -> NetlinkError {
    NetlinkError::Refused {
        what: what.to_owned(),
        source: io::Error::from_raw_os_error(-code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flowtable_has_its_tables_name_and_its_own() {
        let body = [text(1, "fast"), text(2, "past"), number(3, 7)].concat();
        assert_eq!(flowtable(&body), ("fast".to_owned(), "past".to_owned()));
        assert_eq!(flowtable(&[]), (String::new(), String::new()));
    }
}
