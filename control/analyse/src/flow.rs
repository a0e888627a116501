//! One line of `query`'s input: read strictly, kept verbatim.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    net::IpAddr,
    path::Path,
};

use anyhow::Context;
use ringwall_dataplane::classify::{L4, icmp};
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
    /// What is asked for. Of a Service whose port is named, the port is not known yet.
    pub service: Service,
    /// The name of a Service's port.
    pub port_name: Option<String>,
}

/// Protocol and destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, always there for TCP, UDP and SCTP; type and code of ICMP and ICMPv6, as
    /// [`ringwall_dataplane::classify::icmp`] has them, where they are known.
    pub port: Option<u16>,
    /// Source port of TCP, UDP and SCTP, where it is known.
    pub source_port: Option<u16>,
}

/// Protocol and destination port of a question, where a port of a Service may be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedPort {
    /// Protocol and number.
    pub service: Service,
    /// The name of a Service's port; the number is not known then.
    pub name: Option<String>,
}

impl AskedPort {
    /// Reads what [`Service::read`] does, or `http/TCP`.
    ///
    /// # Errors
    /// Says what to write instead.
    pub fn read(text: &str) -> Result<Self, String> {
        let (port, source) = match text.split_once(" from ") {
            Some((port, source)) => (port, Some(source)),
            None => (text, None),
        };
        let named = port.split_once('/').and_then(|(name, protocol)| {
            let of_names = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            let is_name = name.bytes().any(|byte| byte.is_ascii_lowercase()) && name.bytes().all(of_names);
            let known = ["TCP", "UDP", "SCTP"].into_iter();
            let protocol = known
                .filter(|it| it.eq_ignore_ascii_case(protocol))
                .find_map(protocol_number)?;
            (is_name && name != "ip").then(|| (Service::with_port_unknown(protocol), name.to_owned()))
        });
        let Some((service, name)) = named else {
            return Service::read(text).map(|service| Self { service, name: None });
        };
        let source = source.map(|source| {
            let number = source.parse::<u16>();
            number.map_err(|_| format!("{source:?} is not a port: write 0 to 65535"))
        });
        Ok(Self {
            service: service.from_port(source.transpose()?),
            name: Some(name),
        })
    }

    /// As [`Self::read`] takes it.
    pub fn asked(&self) -> String {
        match &self.name {
            Some(name) => {
                let protocol = protocol_name(self.service.protocol);
                match self.service.source_port {
                    Some(source) => format!("{name}/{protocol} from {source}"),
                    None => format!("{name}/{protocol}"),
                }
            }
            None => self.service.asked(),
        }
    }
}

/// How an end is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndName {
    /// By address.
    Address(IpAddr),
    /// As `namespace/name`.
    Pod(ObjectKey),
    /// As `svc:namespace/name`: whichever endpoint a Service leads to.
    Service(ObjectKey),
}

/// Begins the name of a Service.
const SERVICE: &str = "svc:";

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
            return Ok(Self {
                protocol,
                port: None,
                source_port: None,
            });
        }
        match port {
            Some(port) => Ok(Self {
                protocol,
                port: Some(port),
                source_port: None,
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
    /// That of a protocol whose port is known by name alone.
    pub const fn with_port_unknown(protocol: u8) -> Self {
        Self {
            protocol,
            port: None,
            source_port: None,
        }
    }

    /// ICMP or ICMPv6 of a type and code.
    pub const fn of_icmp(protocol: u8, kind: u8, code: u8) -> Self {
        Self {
            protocol,
            port: Some(icmp(kind, code)),
            source_port: None,
        }
    }

    /// Type and code of ICMP and ICMPv6, where they are known.
    pub fn icmp(self) -> Option<(u8, u8)> {
        let [kind, code] = self.port.filter(|_| ICMP.contains(&self.protocol))?.to_be_bytes();
        Some((kind, code))
    }

    /// The same from a source port, where the protocol has ports.
    #[must_use]
    pub fn from_port(self, source_port: Option<u16>) -> Self {
        let source_port = source_port.filter(|_| WITH_PORTS.contains(&self.protocol));
        Self { source_port, ..self }
    }

    /// Whether it has ports and its source port is not known, which rules may ask for.
    pub fn lacks_source_port(self) -> bool {
        self.source_port.is_none() && WITH_PORTS.contains(&self.protocol)
    }

    /// What policies see of it; where the source port is not known, from port 0.
    pub fn l4(self) -> L4 {
        L4::of(self.protocol, self.port, self.source_port.unwrap_or_default())
    }

    /// The same for the literal evaluator.
    pub fn evaluated(self) -> ringwall_evaluate::Service {
        let with_ports = WITH_PORTS.contains(&self.protocol);
        ringwall_evaluate::Service {
            protocol: self.protocol,
            port: self.port,
            source_port: with_ports.then(|| self.source_port.unwrap_or_default()),
        }
    }

    /// Whether it is ICMP or ICMPv6 without a type, which rules may ask for.
    pub fn lacks_type(self) -> bool {
        self.port.is_none() && ICMP.contains(&self.protocol)
    }

    /// Reads `80/TCP`, `ICMP`, `8/ICMP` for a type, `3:4/ICMP` for type and code, or `ip/47` for a protocol by its number;
    /// names in any case. From a source port: `80/TCP from 1024`.
    ///
    /// # Errors
    /// Says what to write instead.
    pub fn read(text: &str) -> Result<Self, String> {
        if let Some((service, source)) = text.split_once(" from ") {
            let service = Self::read(service)?;
            let source = source
                .parse::<u16>()
                .map_err(|_| format!("{source:?} is not a port: write 0 to 65535"))?;
            return match service.lacks_source_port() {
                true => Ok(service.from_port(Some(source))),
                false => Err(format!("{service} has no source port: leave it out")),
            };
        }
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
        let asked = match self.port {
            Some(port) => format!("{port}/{}", self.protocol),
            None => format!("ip/{}", self.protocol),
        };
        match self.source_port {
            Some(source) => format!("{asked} from {source}"),
            None => asked,
        }
    }
}

/// `80/TCP`, `80/TCP from 1024`, `ICMP`, `ICMP type 3 code 4`, `47`.
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
            Some(port) => write!(f, "{port}/{}", protocol_name(self.protocol))?,
            None => f.write_str(&protocol_name(self.protocol))?,
        }
        match self.source_port {
            Some(source) => write!(f, " from {source}"),
            None => Ok(()),
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
        let port_name = match (&dst, value("dst_port")) {
            (EndName::Service(_), Some(serde_json::Value::String(name))) => Some(name),
            _ => None,
        };
        let port = match &port_name {
            Some(_) => None,
            None => number("dst_port", 65_535)?.and_then(|port| u16::try_from(port).ok()),
        };
        let source = number("src_port", 65_535)?.and_then(|port| u16::try_from(port).ok());
        let byte = |key| number(key, 255).map(|number| number.and_then(|it| u8::try_from(it).ok()));
        let service = match (byte("icmp_type")?, byte("icmp_code")?) {
            (Some(kind), code) if ICMP.contains(&protocol) => {
                Service::of_icmp(protocol, kind, code.unwrap_or_default())
            }
            _ if port_name.is_some() => Service::with_port_unknown(protocol).from_port(source),
            _ => Service::new(protocol, port)?.from_port(source),
        };
        Ok(Self {
            verbatim,
            src,
            dst,
            service,
            port_name,
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
    /// Reads an address, `namespace/name`, or `svc:namespace/name` for a Service.
    ///
    /// # Errors
    /// It is none of these.
    pub fn read(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix(SERVICE) {
            let key = name
                .split_once('/')
                .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'));
            let Some((namespace, name)) = key else {
                return Err(format!("{text:?} is not a Service: write svc:namespace/name"));
            };
            return Ok(Self::Service(ObjectKey {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }));
        }
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
            Err(_) => Err(match Self::of_host_name(text) {
                Some(service) => format!(
                    "{text:?} is neither an address nor namespace/pod; if it is the DNS name of a Service, write {service}"
                ),
                None => format!("{text:?} is neither an address nor namespace/pod"),
            }),
        }
    }

    /// The Service that a host name such as `web.shop.svc` stands for.
    fn of_host_name(text: &str) -> Option<Self> {
        let mut labels = text.split('.');
        let (name, namespace) = (labels.next()?, labels.next()?);
        let known = labels.next() == Some("svc") && !name.is_empty() && !namespace.is_empty();
        known.then(|| {
            Self::Service(ObjectKey {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            })
        })
    }
}

impl fmt::Display for EndName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Pod(key) => write!(f, "{key}"),
            Self::Service(key) => write!(f, "{SERVICE}{key}"),
        }
    }
}
