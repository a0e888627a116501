//! One line of `query`'s input: read strictly, kept verbatim.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    net::IpAddr,
    path::Path,
};

use anyhow::Context;
use ringwall_dataplane::classify::icmp;
use ringwall_policy::ObjectKey;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// A flow that is asked about.
#[derive(Debug)]
pub struct Flow {
    /// The keys of the input and their values as written, in their order.
    pub verbatim: Verbatim,
    /// Source.
    pub src: EndName,
    /// Destination.
    pub dst: EndName,
    /// What is asked for.
    pub service: Service,
}

/// Protocol and destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, always there for TCP, UDP and SCTP; type and code of ICMP and ICMPv6, as
    /// [`ringwall_dataplane::classify::icmp`] has them, where they are known.
    pub port: Option<u16>,
}

/// How an end is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndName {
    /// By address.
    Address(IpAddr),
    /// As `namespace/name`.
    Pod(ObjectKey),
}

/// A JSON object whose order and spelling are kept.
#[derive(Debug)]
pub struct Verbatim(pub Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Verbatim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Verbatim;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a flow: a JSON object with src, dst, protocol and dst_port")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Verbatim, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = access.next_entry()? {
                    entries.push(entry);
                }
                Ok(Verbatim(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

const KEYS: &[&str] = &[
    "src",
    "dst",
    "protocol",
    "dst_port",
    "src_port",
    "icmp_type",
    "icmp_code",
];

/// Calls for each flow of a file, or of standard input for `-`: JSON objects on lines of their own, or one array of them.
/// `waits` says that all that could be read so far has been.
///
/// # Errors
/// The input cannot be read, or begins like an array and is none; or what is called fails.
pub fn each(from: &Path, take: impl FnMut(&str, bool) -> io::Result<()>) -> anyhow::Result<()> {
    let reading = || format!("cannot read flows from {}", from.display());
    if from == Path::new("-") {
        return each_of(BufReader::new(io::stdin().lock()), reading, take);
    }
    let file = File::open(from).with_context(reading)?;
    each_of(BufReader::new(file), reading, take)
}

fn each_of<R: io::Read>(
    mut input: BufReader<R>,
    reading: impl Fn() -> String,
    mut take: impl FnMut(&str, bool) -> io::Result<()>,
) -> anyhow::Result<()> {
    if first_byte(&mut input).with_context(&reading)? == Some(b'[') {
        let mut text = String::new();
        io::Read::read_to_string(&mut input, &mut text).with_context(&reading)?;
        let flows: Vec<Box<RawValue>> = serde_json::from_str(&text)
            .context("the flows begin with [ but are not a JSON array")
            .with_context(reading)?;
        for flow in flows {
            take(flow.get(), false)?;
        }
        return Ok(());
    }
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).with_context(&reading)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        // Some editors begin a file with a mark.
        let text = text.trim_start_matches('\u{feff}').trim();
        if !text.is_empty() {
            take(text, input.buffer().is_empty())?;
        }
    }
}

/// The first byte that is not white space, left in place.
fn first_byte<R: io::Read>(input: &mut BufReader<R>) -> io::Result<Option<u8>> {
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let blank = buffer
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace())
            .count();
        let next = buffer.get(blank).copied();
        input.consume(blank);
        if next.is_some() {
            return Ok(next);
        }
    }
}

/// TCP, UDP and SCTP.
const WITH_PORTS: &[u8] = &[6, 17, 132];

impl Service {
    /// A service by protocol and port.
    ///
    /// # Errors
    /// A protocol with ports needs one.
    pub fn new(protocol: u8, port: Option<u16>) -> Result<Self, String> {
        if !WITH_PORTS.contains(&protocol) {
            return Ok(Self { protocol, port: None });
        }
        match port {
            Some(port) => Ok(Self {
                protocol,
                port: Some(port),
            }),
            None => Err(format!(
                "dst_port is missing: {} needs one",
                protocol_name(protocol)
            )),
        }
    }
}

/// ICMP and ICMPv6.
const ICMP: &[u8] = &[1, 58];

impl Service {
    /// ICMP or ICMPv6 of a type and code.
    pub const fn of_icmp(protocol: u8, kind: u8, code: u8) -> Self {
        Self {
            protocol,
            port: Some(icmp(kind, code)),
        }
    }

    /// Type and code of ICMP and ICMPv6, where they are known.
    pub fn icmp(self) -> Option<(u8, u8)> {
        let [kind, code] = self.port.filter(|_| ICMP.contains(&self.protocol))?.to_be_bytes();
        Some((kind, code))
    }

    /// Whether it is ICMP or ICMPv6 without a type, which rules may ask for.
    pub fn lacks_type(self) -> bool {
        self.port.is_none() && ICMP.contains(&self.protocol)
    }

    /// Reads `80/TCP`, `ICMP`, `8/ICMP` for a type, `3:4/ICMP` for type and code, or `ip/47` for a protocol by its number;
    /// names in any case.
    ///
    /// # Errors
    /// Says what to write instead.
    pub fn read(text: &str) -> Result<Self, String> {
        let (port, protocol) = match text.split_once('/') {
            Some((ip, protocol)) if ip.eq_ignore_ascii_case("ip") => (None, protocol),
            Some((port, protocol)) => (Some(port), protocol),
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                return Err(format!(
                    "{text:?} may mean a port or a protocol: write {text}/TCP or ip/{text}"
                ));
            }
            None => (None, text),
        };
        let name = ["TCP", "UDP", "SCTP", "ICMP", "ICMPv6"]
            .into_iter()
            .find(|name| name.eq_ignore_ascii_case(protocol))
            .unwrap_or(protocol);
        let number = protocol_number(name).or_else(|| protocol.parse::<u8>().ok()).ok_or_else(|| {
            format!(
                "{protocol:?} is not a protocol: write PORT/TCP, PORT/UDP, PORT/SCTP, ICMP, ICMPv6 or ip/NUMBER"
            )
        })?;
        let Some(port) = port else {
            return Self::new(number, None).map_err(|_| format!("{text:?} lacks the port: write 80/{text}"));
        };
        if ICMP.contains(&number) {
            let (kind, code) = port.split_once(':').unwrap_or((port, "0"));
            return match (kind.parse(), code.parse()) {
                (Ok(kind), Ok(code)) => Ok(Self::of_icmp(number, kind, code)),
                _ => Err(format!(
                    "{port:?} is not a type of {protocol}: write 8/{protocol}, or 3:4/{protocol} for type 3 and code 4"
                )),
            };
        }
        let port = port
            .parse::<u16>()
            .map_err(|_| format!("{port:?} is not a port: write 0 to 65535"))?;
        let service = Self::new(number, Some(port))?;
        if service.port.is_none() {
            return Err(format!("{protocol} has no ports: write {protocol} alone"));
        }
        Ok(service)
    }
}

impl Service {
    /// As [`Self::read`] takes it.
    pub fn asked(&self) -> String {
        if let Some((kind, code)) = self.icmp() {
            return format!("{kind}:{code}/{}", self.protocol);
        }
        match self.port {
            Some(port) => format!("{port}/{}", self.protocol),
            None => format!("ip/{}", self.protocol),
        }
    }
}

/// `80/TCP`, `ICMP`, `ICMP type 3 code 4`, `47`.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((kind, code)) = self.icmp() {
            write!(f, "{} type {kind}", protocol_name(self.protocol))?;
            return if code == 0 {
                Ok(())
            } else {
                write!(f, " code {code}")
            };
        }
        match self.port {
            Some(port) => write!(f, "{port}/{}", protocol_name(self.protocol)),
            None => f.write_str(&protocol_name(self.protocol)),
        }
    }
}

/// The name of a protocol, or its number.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        number => format!("protocol {number}"),
    }
}

/// The number of a protocol's name.
pub fn protocol_number(name: &str) -> Option<u8> {
    Some(match name {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        "ICMP" => 1,
        "ICMPv6" => 58,
        _ => return None,
    })
}

impl Flow {
    /// Reads a flow.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn read(text: &str) -> Result<Self, String> {
        let verbatim: Verbatim =
            serde_json::from_str(text).map_err(|error| format!("not a flow in JSON: {error}"))?;
        Self::from_entries(verbatim)
    }

    fn from_entries(verbatim: Verbatim) -> Result<Self, String> {
        for (index, (key, _)) in verbatim.0.iter().enumerate() {
            if !KEYS.contains(&key.as_str()) {
                return Err(format!("unknown key {key:?}: known are {}", KEYS.join(", ")));
            }
            if verbatim.0.iter().take(index).any(|(other, _)| other == key) {
                return Err(format!("the key {key:?} is listed twice"));
            }
        }
        let value = |key: &str| -> Option<serde_json::Value> {
            let (_, raw) = verbatim.0.iter().find(|(name, _)| name == key)?;
            serde_json::from_str(raw.get())
                .ok()
                .filter(|value: &serde_json::Value| !value.is_null())
        };
        let end = |key: &str| match value(key) {
            Some(serde_json::Value::String(text)) => {
                EndName::read(&text).map_err(|wrong| format!("{key}: {wrong}"))
            }
            Some(other) => Err(format!(
                "{key}: must be an address or \"namespace/pod\" in quotes, not {other}"
            )),
            None => Err(format!("{key} is missing: write an address or \"namespace/pod\"")),
        };
        let number = |key: &str, most: u64| match value(key) {
            None => Ok(None),
            Some(value) => match whole(&value).filter(|number| *number <= most) {
                Some(number) => Ok(Some(number)),
                None => Err(format!("{key}: must be a number from 0 to {most}, not {value}")),
            },
        };
        let (src, dst) = (end("src")?, end("dst")?);
        let protocol = match value("protocol") {
            None => Err("protocol is missing: write TCP, UDP, SCTP, ICMP, ICMPv6 or a number".to_owned()),
            Some(value) => {
                let known = match &value {
                    serde_json::Value::String(name) => protocol_number(name),
                    other => whole(other).and_then(|number| u8::try_from(number).ok()),
                };
                known.ok_or_else(|| {
                    format!("protocol: {value} is not known: write TCP, UDP, SCTP, ICMP, ICMPv6 or a number up to 255")
                })
            }
        }?;
        let port = number("dst_port", 65_535)?.and_then(|port| u16::try_from(port).ok());
        number("src_port", 65_535)?;
        let byte = |key| number(key, 255).map(|number| number.and_then(|it| u8::try_from(it).ok()));
        let service = match (byte("icmp_type")?, byte("icmp_code")?) {
            (Some(kind), code) if ICMP.contains(&protocol) => {
                Service::of_icmp(protocol, kind, code.unwrap_or_default())
            }
            _ => Service::new(protocol, port)?,
        };
        Ok(Self {
            verbatim,
            src,
            dst,
            service,
        })
    }
}

/// A whole number, however it is written (`80`, `80.0`, `8e1`).
fn whole(value: &serde_json::Value) -> Option<u64> {
    let float = || {
        value
            .as_f64()
            .filter(|float| float.fract() == 0.0 && (0.0..1e9).contains(float))
    };
    value.as_u64().or_else(|| float().map(|float| float as u64))
}

impl EndName {
    /// Reads an address or `namespace/name`.
    ///
    /// # Errors
    /// It is neither.
    pub fn read(text: &str) -> Result<Self, String> {
        if let Some((namespace, name)) = text.split_once('/') {
            if namespace.is_empty() || name.is_empty() {
                return Err(format!("{text:?} is not namespace/pod"));
            }
            return Ok(Self::Pod(ObjectKey {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }));
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self::Address(address.to_canonical())),
            Err(_) => Err(format!("{text:?} is neither an address nor namespace/pod")),
        }
    }
}

impl fmt::Display for EndName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Pod(key) => write!(f, "{key}"),
        }
    }
}
