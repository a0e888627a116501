//! Sends UDP packets out of one interface as fast as its sockets take them: load for `l2fwd`, from another namespace.
//!
//! `flood INTERFACE SECONDS CPU [FLOWS] [BYTES]`: packets of `BYTES` with `FLOWS` source ports, from 198.18.0.1 to
//! 198.18.0.2 (RFC 2544's range), checksums right, to a locally administered address. Needs root.

use std::{
    env,
    error::Error,
    process,
    time::{Duration, Instant},
};

use ringwall_dataplane::{io::PacketIo, port::PortId};
use ringwall_xsk::{Config, PortConfig, RingSizes, ZeroCopy};

fn main() {
    if let Err(error) = flood() {
        eprintln!("flood: {error}");
        process::exit(2);
    }
}

fn flood() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [interface, seconds, cpu, rest @ ..] = arguments.as_slice() else {
        return Err("usage: flood INTERFACE SECONDS CPU [FLOWS] [BYTES]".into());
    };
    let duration = Duration::from_secs(seconds.parse()?);
    let flows: u16 = rest.first().map_or(Ok(1000), |text| text.parse())?;
    let bytes: usize = rest.get(1).map_or(Ok(60), |text| text.parse())?;
    if flows == 0 || !(60..=1514).contains(&bytes) {
        return Err("at least one flow, and packets of 60 to 1514 bytes".into());
    }
    ringwall_xsk::pin_to(cpu.parse()?)?;
    let port = PortConfig {
        id: PortId(0),
        name: interface.clone(),
        queues: None,
        fill_frames: 64,
    };
    let (sockets, mut workers) = ringwall_xsk::open(&Config {
        ports: vec![port],
        workers: 1,
        zero_copy: ZeroCopy::Prefer,
        rings: RingSizes::default(),
        frames: None,
        late_ports: 0,
        bind_timeout_ms: 2000,
    })?;
    let io = workers.first_mut().ok_or("no worker")?;
    let template = packet(bytes);
    let started = Instant::now();
    let mut flow = 0;
    while started.elapsed() < duration {
        for _ in 0..64 {
            let Some(mut frame) = io.allocate() else { break };
            if !frame.set_len(bytes) {
                return Err("a packet does not fit into a frame".into());
            }
            let packet = frame.bytes_mut();
            packet.copy_from_slice(&template);
            flow = (flow + 1) % flows;
            packet[34..36].copy_from_slice(&(1024 + flow).to_be_bytes());
            io.send(PortId(0), frame);
        }
        io.flush();
    }
    let sent: u64 = sockets
        .stats()
        .iter()
        .map(|(_, _, stats)| stats.tx_frames - stats.tx_lost)
        .sum();
    println!(
        "{:.3} Mpps sent",
        sent as f64 / started.elapsed().as_secs_f64() / 1e6
    );
    Ok(())
}

/// Ethernet, IPv4, UDP without checksum (RFC 768 allows it), zeroes.
fn packet(bytes: usize) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let length = (bytes - 14) as u16;
    packet.extend([0x45, 0]);
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2]);
    let sum: u32 = packet[14..34]
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet.extend([0, 0, 0x1b, 0x58]);
    packet.extend((length - 20).to_be_bytes());
    packet.resize(bytes, 0);
    packet
}
