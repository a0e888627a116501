//! Real sockets as sources: packets as applications send them, through the kernel's own path, with its checksums and its
//! segments.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use hdrhistogram::Histogram;
use ringwall_bpf::generator::{STAMP, Sent};
use rustix::time::{ClockId, clock_gettime};

use super::{Arrived, InterfaceInNetns, Options, Outcome, UNDER_WAY};

/// Most sockets or clients: each client has a thread, and a process 1,024 descriptors.
const MOST: u32 = 512;
/// Headers of UDP over IPv4, with Ethernet and its check sequence; of IPv6, 20 more.
const HEADERS: u16 = 46;
/// How long a client waits for its connection or its answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Sends datagrams or makes connections.
pub(super) fn send(options: &Options) -> anyhow::Result<Outcome> {
    ensure!(
        (1..=MOST).contains(&options.flows),
        "--flows {}: give 1 to {MOST} sockets",
        options.flows
    );
    ensure!(
        !options.syn_flood,
        "sockets do not flood: leave --sockets or --syn-flood out"
    );
    ensure!(
        options.to.count == 1 && options.to_ports.count == 1,
        "sockets send to one address and one port: give --to ADDRESS and --to-ports PORT"
    );
    ensure!(
        options.size.as_ref().is_none_or(|sizes| sizes.0.len() == 1),
        "sockets send datagrams of one length: give --size LENGTH"
    );
    let here = InterfaceInNetns {
        netns: None,
        interface: String::new(),
    };
    let from = options.interface.as_ref().unwrap_or(&here);
    let at = options
        .sink
        .as_ref()
        .context("give --sink NETNS: (or : for this namespace), where the sockets that receive are")?;
    let to = SocketAddr::new(options.to.first, options.to_ports.first);
    match options.tcp {
        Some(_) => connections(options, from, at, to),
        None => datagrams(options, from, at, to),
    }
}

/// Nanoseconds of the monotonic clock.
fn clock() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn anywhere(like: SocketAddr) -> SocketAddr {
    let any = match like.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(any, 0)
}

fn new_histogram() -> anyhow::Result<Histogram<u64>> {
    Histogram::new(3).map_err(|error| anyhow!("making a histogram: {error}"))
}

fn record(histogram: &mut Histogram<u64>, nanoseconds: u64) -> anyhow::Result<()> {
    histogram
        .record(nanoseconds)
        .map_err(|error| anyhow!("a latency of {nanoseconds} ns: {error}"))
}

fn datagrams(
    options: &Options,
    from: &InterfaceInNetns,
    at: &InterfaceInNetns,
    to: SocketAddr,
) -> anyhow::Result<Outcome> {
    let headers = HEADERS + if to.is_ipv6() { 20 } else { 0 };
    let size = options
        .size
        .as_ref()
        .and_then(|sizes| sizes.0.first())
        .map_or(headers + STAMP as u16, |(size, _)| *size);
    let length = size
        .checked_sub(headers)
        .filter(|length| usize::from(*length) >= STAMP)
        .with_context(|| {
            format!(
                "--size {size}: sockets send {} bytes or more",
                headers + STAMP as u16
            )
        })?;
    let receiver = at.within(|| UdpSocket::bind(to).with_context(|| format!("cannot receive on {to}")))?;
    receiver.set_read_timeout(Some(UNDER_WAY))?;
    let over = AtomicBool::new(false);
    let frames = options.frames();
    let (arrived, sent) = thread::scope(|scope| -> anyhow::Result<(Arrived, Sent)> {
        let counting = scope.spawn(|| receive(&receiver, options.flows, usize::from(length), &over));
        let sent = from.within(|| send_datagrams(options, to, length, frames));
        over.store(true, Relaxed);
        let arrived = counting.join().map_err(|_| anyhow!("the receiver panicked"))??;
        Ok((arrived, sent?))
    })?;
    Ok(Outcome {
        stream: format!("{size}-byte UDP, {} sockets", options.flows),
        ordered_rate: options.rate,
        sent,
        stamped: sent.frames,
        arrived: Some(arrived),
    })
}

fn send_datagrams(options: &Options, to: SocketAddr, length: u16, frames: u64) -> anyhow::Result<Sent> {
    let sockets = (0..options.flows)
        .map(|_| {
            let socket = UdpSocket::bind(anywhere(to))?;
            socket.connect(to)?;
            Ok(socket)
        })
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(|| format!("cannot send to {to}"))?;
    let mut datagram = vec![0; usize::from(length)];
    let begin = Instant::now();
    let (mut last, mut behind) = (begin, Duration::ZERO);
    for frame in 0..frames {
        if let Some(rate) = options.rate {
            let due = Duration::from_secs_f64(frame as f64 / rate as f64);
            if let Some(early) = due.checked_sub(begin.elapsed()) {
                if early > Duration::from_millis(1) {
                    thread::sleep(early - Duration::from_micros(500));
                }
                while begin.elapsed() < due {
                    std::hint::spin_loop();
                }
            } else {
                behind = behind.max(begin.elapsed() - due);
            }
        }
        let flow = (frame % u64::from(options.flows)) as u32;
        datagram[..4].copy_from_slice(&flow.to_ne_bytes());
        datagram[4..8].copy_from_slice(&(frame as u32).to_ne_bytes());
        datagram[8..16].copy_from_slice(&clock().to_ne_bytes());
        // A full queue drops, as it does for every application; an answered refusal is the receiver's.
        let _ = sockets[flow as usize].send(&datagram);
        last = Instant::now();
    }
    Ok(Sent {
        frames,
        took: last - begin,
        behind,
    })
}

/// Counts until the sender is done and nothing came for a while.
fn receive(socket: &UdpSocket, flows: u32, length: usize, over: &AtomicBool) -> anyhow::Result<Arrived> {
    let mut arrived = Arrived {
        packets: 0,
        bytes: 0,
        others: 0,
        reordered: 0,
        by_flow: vec![0; flows as usize],
        latency: new_histogram()?,
    };
    let mut highest = vec![0_u32; flows as usize];
    let mut datagram = vec![0; 65_536];
    loop {
        let Ok(count) = socket.recv(&mut datagram) else {
            if over.load(Relaxed) {
                return Ok(arrived);
            }
            continue;
        };
        let word = |at: usize| {
            u32::from_ne_bytes([datagram[at], datagram[at + 1], datagram[at + 2], datagram[at + 3]])
        };
        let (flow, sequence) = (word(0) as usize, word(4));
        if count != length || flow >= arrived.by_flow.len() {
            arrived.others += 1;
            continue;
        }
        let sent = u64::from(word(8)) | u64::from(word(12)) << 32;
        arrived.packets += 1;
        arrived.bytes += count as u64;
        if arrived.by_flow[flow] > 0 && sequence < highest[flow] {
            arrived.reordered += 1;
        } else {
            highest[flow] = sequence;
        }
        arrived.by_flow[flow] += 1;
        record(&mut arrived.latency, clock().saturating_sub(sent))?;
    }
}

/// Connections that are opened, used for one stamp each way and closed; a latency is that of all three steps.
fn connections(
    options: &Options,
    from: &InterfaceInNetns,
    at: &InterfaceInNetns,
    to: SocketAddr,
) -> anyhow::Result<Outcome> {
    let listener = at.within(|| TcpListener::bind(to).with_context(|| format!("cannot listen on {to}")))?;
    listener.set_nonblocking(true)?;
    let over = AtomicBool::new(false);
    let clients = options.flows;
    let share = options.frames().div_ceil(clients.into());
    let begin = Instant::now();
    let (by_client, took) = thread::scope(|scope| -> anyhow::Result<_> {
        let server = scope.spawn(|| serve(&listener, &over));
        let threads: Vec<_> = (0..clients)
            .map(|_| scope.spawn(|| from.enter().and_then(|()| connect(options, to, share, begin))))
            .collect();
        let results: Vec<anyhow::Result<(u32, Histogram<u64>)>> = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?)
            .collect();
        let took = begin.elapsed();
        over.store(true, Relaxed);
        server.join().map_err(|_| anyhow!("the server panicked"))?;
        Ok((results.into_iter().collect::<anyhow::Result<Vec<_>>>()?, took))
    })?;
    let mut latency = new_histogram()?;
    for (_, own) in &by_client {
        latency
            .add(own)
            .map_err(|error| anyhow!("adding histograms: {error}"))?;
    }
    let by_flow: Vec<u32> = by_client.iter().map(|(count, _)| *count).collect();
    let made: u64 = by_flow.iter().map(|count| u64::from(*count)).sum();
    let wanted = share * u64::from(clients);
    Ok(Outcome {
        stream: format!("TCP connections of {clients} clients, one stamp each way"),
        ordered_rate: options.rate,
        sent: Sent {
            frames: wanted,
            took,
            behind: Duration::ZERO,
        },
        stamped: wanted,
        arrived: Some(Arrived {
            packets: made,
            bytes: made * STAMP as u64,
            others: 0,
            reordered: 0,
            by_flow,
            latency,
        }),
    })
}

/// Connections of one client; those that failed are not counted.
fn connect(
    options: &Options,
    to: SocketAddr,
    count: u64,
    begin: Instant,
) -> anyhow::Result<(u32, Histogram<u64>)> {
    let mut latency = new_histogram()?;
    let mut made = 0;
    for index in 0..count {
        if let Some(rate) = options.rate {
            let due = Duration::from_secs_f64(index as f64 * f64::from(options.flows) / rate as f64);
            thread::sleep(due.saturating_sub(begin.elapsed()));
        }
        let start = Instant::now();
        let once = || -> std::io::Result<()> {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut stamp = [7; STAMP];
            stream.write_all(&stamp)?;
            stream.read_exact(&mut stamp)?;
            // Without the wait of a closed connection, ports would run out.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
        };
        if once().is_ok() {
            made += 1;
            record(&mut latency, start.elapsed().as_nanos() as u64)?;
        }
    }
    Ok((made, latency))
}

/// Answers each connection once, one after the other.
fn serve(listener: &TcpListener, over: &AtomicBool) {
    while !over.load(Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            thread::yield_now();
            continue;
        };
        let mut stamp = [0; STAMP];
        // A client that went away counts as failed on its side.
        let _ = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
            .and_then(|()| stream.read_exact(&mut stamp))
            .and_then(|()| stream.write_all(&stamp))
            .and_then(|()| stream.shutdown(Shutdown::Write));
    }
}
