//! How long a restart keeps the queues of an interface without a socket: attach (programs taken over), open, register.
//!
//! `restart INTERFACE [ROUNDS]`: closes and reopens everything, as a process that ends and its successor would, and
//! prints the time of each part. Needs root, and a BPF file system: `/sys/fs/bpf`, or the one that `BPFFS` names.

#[path = "support/pins.rs"]
mod pins;

use std::{env, error::Error, os::fd::AsFd, process, time::Instant};

use ringwall_bpf::{AttachMode, AttachedPort, EgressGuard, FailMode, PortRole, PortSpec, attach};
use ringwall_dataplane::port::PortId;
use ringwall_xsk::{Config, PortConfig, RingSizes, Sockets, XskIo, ZeroCopy, open};

fn main() {
    if let Err(error) = restart() {
        eprintln!("restart: {error}");
        process::exit(2);
    }
}

type Parts = (AttachedPort, Sockets, Vec<XskIo>);

fn start(spec: &PortSpec) -> Result<Parts, Box<dyn Error>> {
    let started = Instant::now();
    let mut port = attach(spec)?;
    let attached = started.elapsed();
    let (sockets, workers) = open(&Config {
        ports: vec![PortConfig {
            id: PortId(0),
            name: spec.name.clone(),
            queues: None,
            fill_frames: 512,
        }],
        workers: 1,
        zero_copy: ZeroCopy::Off,
        rings: RingSizes::default(),
        frames: None,
        late_ports: 0,
        bind_timeout_ms: 2000,
    })?;
    let opened = started.elapsed();
    let mut binds = 0;
    for queue in sockets.queues() {
        port.register_socket(queue.queue.0, queue.as_fd())?;
        binds += queue.bind_micros;
    }
    println!(
        "{}: attach {} us, open {} us (bind {binds} us), register {} us, together {} us",
        if port.reused() { "taken over" } else { "new" },
        attached.as_micros(),
        (opened - attached).as_micros(),
        (started.elapsed() - opened).as_micros(),
        started.elapsed().as_micros()
    );
    Ok((port, sockets, workers))
}

fn restart() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let name = arguments.first().ok_or("usage: restart INTERFACE [ROUNDS]")?;
    let rounds: u32 = arguments.get(1).map_or(Ok(5), |text| text.parse())?;
    let pins = pins::Pins::of("restart", std::slice::from_ref(name));
    let spec = PortSpec {
        name: name.clone(),
        pins: pins.folder().to_owned(),
        role: PortRole::Pod,
        fail_mode: FailMode::Closed,
        mode: AttachMode::Auto,
        guard: EgressGuard::Drop,
        local_addresses: Vec::new(),
        pod_cidrs: vec!["10.0.0.0/8".parse()?],
        failsafe: Vec::new(),
        tunnel_ports: Vec::new(),
    };
    for _ in 0..=rounds {
        let (_, sockets, workers) = start(&spec)?;
        let closing = Instant::now();
        drop((workers, sockets));
        println!("closed in {} us", closing.elapsed().as_micros());
    }
    Ok(())
}
