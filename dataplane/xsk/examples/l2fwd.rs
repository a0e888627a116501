//! What comes in on one interface goes out of the other, untouched: the sockets and rings of ringwall without its
//! packet plane. The control of the benchmarks.
//!
//! `l2fwd FIRST SECOND [SECONDS] [CPU]...`: one worker per CPU given (one, unpinned, without); prints packets per
//! second, and the accounts at the end. SIGTERM ends it earlier. Needs root, and a BPF file system: `/sys/fs/bpf`, or the
//! one that `BPFFS` names.

#[path = "support/pins.rs"]
mod pins;

use std::{
    env,
    error::Error,
    os::fd::AsFd,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use ringwall_bpf::{AttachMode, EgressGuard, FailMode, PortRole, PortSpec};
use ringwall_dataplane::{
    io::{Burst, PacketIo},
    port::PortId,
};
use ringwall_xsk::{Config, PortConfig, RingSizes, XskIo, ZeroCopy};

fn main() {
    if let Err(error) = forward() {
        eprintln!("l2fwd: {error}");
        process::exit(2);
    }
}

fn forward() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [first, second, rest @ ..] = arguments.as_slice() else {
        return Err("usage: l2fwd FIRST SECOND [SECONDS] [CPU]...".into());
    };
    let seconds: u64 = rest.first().map_or(Ok(10), |text| text.parse())?;
    let cpus: Vec<usize> = rest
        .iter()
        .skip(1)
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let names = [first, second];
    let size = |name: &str, default: u32| env::var(name).map_or(Ok(default), |text| text.parse());
    let default = RingSizes::default();
    let rings = RingSizes {
        rx: size("RX_RING", default.rx)?,
        tx: size("TX_RING", default.tx)?,
        fill: size("FILL_RING", default.fill)?,
        completion: size("COMPLETION_RING", default.completion)?,
    };
    let fill_frames = size("FILL_FRAMES", 512)?;

    let pins = pins::Pins::of("l2fwd", &names.map(String::clone));
    let mut attached = Vec::new();
    for (index, name) in names.iter().enumerate() {
        attached.push(ringwall_bpf::attach(&PortSpec {
            name: (*name).clone(),
            pins: pins.folder().to_owned(),
            role: PortRole::Wire {
                peer: names[1 - index].clone(),
                judge_all: true,
            },
            fail_mode: FailMode::Open,
            mode: AttachMode::Auto,
            guard: EgressGuard::Off,
            local_addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            failsafe: Vec::new(),
            tunnel_ports: Vec::new(),
        })?);
    }
    let ports = names.iter().enumerate().map(|(index, name)| PortConfig {
        id: PortId(index as u16),
        name: (*name).clone(),
        queues: None,
        fill_frames,
    });
    let config = Config {
        ports: ports.collect(),
        workers: cpus.len().max(1),
        zero_copy: ZeroCopy::Prefer,
        rings,
        frames: None,
        late_ports: 0,
        bind_timeout_ms: 2000,
    };
    let (sockets, workers) = ringwall_xsk::open(&config)?;
    for queue in sockets.queues() {
        attached[usize::from(queue.port.0)].register_socket(queue.queue.0, queue.as_fd())?;
        println!(
            "{} queue {}: worker {}, {}, bound in {} us",
            names[usize::from(queue.port.0)],
            queue.queue.0,
            queue.worker,
            if queue.zero_copy { "zero-copy" } else { "copy" },
            queue.bind_micros
        );
    }
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop))?;
    let threads: Vec<_> = workers
        .into_iter()
        .enumerate()
        .map(|(index, io)| {
            let (stop, cpu) = (Arc::clone(&stop), cpus.get(index).copied());
            thread::spawn(move || work(io, cpu, &stop))
        })
        .collect();

    let started = Instant::now();
    let mut last = 0;
    let second = Duration::from_secs(1);
    while started.elapsed() < Duration::from_secs(seconds) && !stop.load(Relaxed) {
        let due = started.elapsed() + second;
        while started.elapsed() < due && !stop.load(Relaxed) {
            thread::sleep(Duration::from_millis(20));
        }
        let now: u64 = sockets
            .stats()
            .iter()
            .map(|(_, _, stats)| stats.tx_frames - stats.tx_lost)
            .sum();
        println!("{:.3} Mpps", (now - last) as f64 / 1e6);
        last = now;
    }
    stop.store(true, Relaxed);
    for thread in threads {
        let mut io = thread.join().map_err(|_| "a worker panicked")??;
        (0..100).for_each(|_| io.flush());
    }
    for (port, queue, stats) in sockets.stats() {
        println!("{} queue {}: {stats:?}", names[usize::from(port.0)], queue.0);
    }
    println!("{:?}", sockets.accounts());
    Ok(())
}

fn work(mut io: XskIo, cpu: Option<usize>, stop: &AtomicBool) -> Result<XskIo, ringwall_xsk::XskError> {
    if let Some(cpu) = cpu {
        ringwall_xsk::pin_to(cpu)?;
    }
    let mut burst = Burst::new();
    while !stop.load(Relaxed) {
        for source in 0..io.sources() {
            io.receive(source, &mut burst);
            for frame in burst.drain(..) {
                let to = PortId(1 - frame.port().0);
                io.send(to, frame);
            }
        }
        io.flush();
    }
    Ok(io)
}
