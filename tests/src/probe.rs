//! Clients: one attempt to reach somebody, with a bound on the time it may take.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{Result, netns::Netns};

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    /// A TCP connection with an HTTP request.
    Tcp(u16),
    /// A UDP datagram and its answer.
    Udp(u16),
    /// An ICMP or ICMPv6 echo request and its answer.
    Echo,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "{port}/TCP"),
            Self::Udp(port) => write!(f, "{port}/UDP"),
            Self::Echo => f.write_str("ICMP"),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer, and who says it is from where the protocol carries a name.
    Answered(Option<String>),
    /// Nothing in time.
    Silence,
    /// The peer's kernel, or a router, said no: the packet got somewhere.
    Refused(String),
}

impl Outcome {
    /// Whether both ways are open.
    pub fn answered(&self) -> bool {
        matches!(self, Self::Answered(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(_) => f.write_str("answered"),
            Self::Silence => f.write_str("silence"),
            Self::Refused(why) => write!(f, "refused ({why})"),
        }
    }
}

/// One attempt.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Where it starts.
    pub from: &'a Netns,
    /// The address that it starts from, where the namespace has several.
    pub source: Option<IpAddr>,
    /// Where it goes.
    pub to: IpAddr,
    /// What is tried.
    pub service: Service,
}

/// Makes one attempt, from the thread's own namespace. A lost packet is sent again within the time as usual: TCP after
/// a second, the others a few times.
pub fn attempt(source: Option<IpAddr>, to: IpAddr, service: Service, within: Duration) -> Outcome {
    let result = match service {
        Service::Tcp(port) => tcp(source, SocketAddr::new(to, port), within),
        Service::Udp(port) => udp(source, SocketAddr::new(to, port), within),
        Service::Echo => echo(source, to, within),
    };
    result.unwrap_or_else(|error| match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Outcome::Silence,
        _ => Outcome::Refused(error.to_string()),
    })
}

/// Makes attempts all at the same time; the outcomes are in their order.
///
/// # Errors
/// A namespace cannot be entered.
pub fn attempt_all(attempts: &[Attempt<'_>], within: Duration) -> Result<Vec<Outcome>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = attempts
            .iter()
            .map(|one| {
                scope.spawn(move || {
                    one.from.enter().map_err(|error| {
                        crate::BedError::new(format!("cannot enter {}", one.from.name()), error)
                    })?;
                    Ok(attempt(one.source, one.to, one.service, within))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    })
}

fn tcp(source: Option<IpAddr>, to: SocketAddr, within: Duration) -> io::Result<Outcome> {
    let end = Instant::now() + within;
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect_timeout(&to.into(), within)?;
    let mut connection = TcpStream::from(socket);
    let left = end
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(100));
    connection.set_read_timeout(Some(left))?;
    connection.set_write_timeout(Some(left))?;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let name = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.trim().to_owned());
    Ok(Outcome::Answered(name))
}

fn udp(source: Option<IpAddr>, to: SocketAddr, within: Duration) -> io::Result<Outcome> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((source.unwrap_or(any), 0))?;
    socket.connect(to)?;
    let mut buffer = [0; 2048];
    each_try(within, |number, wait| {
        socket.set_read_timeout(Some(wait))?;
        socket.send(format!("ask {number}").as_bytes())?;
        let length = socket.recv(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        Ok(Outcome::Answered(text.split(' ').next().map(str::to_owned)))
    })
}

fn echo(source: Option<IpAddr>, to: IpAddr, within: Duration) -> io::Result<Outcome> {
    // The kernel fills in identifier and checksum of a datagram socket and hands up only answers to it.
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&SocketAddr::new(to, 0).into())?;
    each_try(within, |number, wait| {
        socket.set_read_timeout(Some(wait))?;
        socket.send(&[request, 0, 0, 0, 0, 0, 0, number, b'r', b'i', b'n', b'g'])?;
        let mut answer = [0; 64];
        let length = (&socket).read(&mut answer)?;
        if length >= 12 && answer[0] == reply && answer[8..12] == *b"ring" {
            Ok(Outcome::Answered(None))
        } else {
            Ok(Outcome::Refused(format!(
                "ICMP type {} code {}",
                answer[0], answer[1]
            )))
        }
    })
}

/// Sends up to four times within the time; the answer of the last wait counts when all are silent.
fn each_try(
    within: Duration,
    mut once: impl FnMut(u8, Duration) -> io::Result<Outcome>,
) -> io::Result<Outcome> {
    const TRIES: u8 = 4;
    for number in 1..TRIES {
        match once(number, within / u32::from(TRIES)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {}
            other => return other,
        }
    }
    once(TRIES, within / u32::from(TRIES))
}
