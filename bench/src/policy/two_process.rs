//! The dataplane in a process of its own: a real `ringwall run` on a wire between veth pairs, with AF_XDP workers.
//!
//! Another process cannot be asked, snapshot by snapshot, what its workers decide by. So a go-between takes the place of
//! the dataplane's socket. It passes on every message of control and every answer, the adoption of a snapshot by all
//! workers too, notes when that came, and keeps a copy of each snapshot.

use std::{
    collections::VecDeque,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use ringwall_appliance::snapshot_server::locked;
use ringwall_dataplane::{classify::Snapshot, wire::build::Template};
use ringwall_messages::{
    Connection, DATAPLANE_SOCKET, Listener, ProtocolError, Received, Reply, Request, read_image,
};
use ringwall_testbed::{
    api_server::ApiServer,
    appliance::{Appliance, Signal, built_binary},
    netns::Netns,
    synthetic::{POD_CIDRS, SERVICE_CIDR},
    topology::{Bed, Plan, Role},
};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use super::in_process::{AdoptionTracker, Established, pairs};

/// How long the appliance may take for its first snapshot.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of an Ethernet header without tags, before the packet.
const ETHERNET: usize = 14;
/// Packets that are sent at once, at each end, and the time until the next: 10,000 in a second.
const SEND_BURST: usize = 20;
const SEND_INTERVAL: Duration = Duration::from_millis(2);

/// The appliance, its API server and the go-between.
pub(super) struct TwoProcess {
    proxy: Arc<SocketProxy>,
    stop: Arc<AtomicBool>,
    senders: Mutex<Vec<JoinHandle<anyhow::Result<()>>>>,
    appliance: Appliance,
    /// Process id of control.
    pub(super) control: u32,
    /// From the start of `ringwall run` to the first snapshot at the workers.
    pub(super) first: Duration,
    bed: Bed,
}

impl TwoProcess {
    /// Makes the namespaces and an API server in the middle one, and starts `ringwall run` there.
    pub(super) fn start(
        server: impl FnOnce() -> anyhow::Result<ApiServer> + Send,
        verify: &str,
    ) -> anyhow::Result<(Self, ApiServer)> {
        let plans = [
            Plan::new("bench/in_process"),
            Plan::new("bench/outside").outside(),
        ];
        let bed = Bed::new(Role::Wire, &plans, 1)?;
        for (router, other) in bed.routers.iter().zip(["198.51.100.2", "198.51.100.1"]) {
            // The connections' packets end there, whoever they are for.
            router.sysctl("net/ipv4/ip_forward", "0")?;
            router.ip(&[format!("route replace default via {other}")])?;
        }
        let server = bed.gateway.run(server)??;
        let folder = bed.folder();
        fs::write(folder.join("kubeconfig"), server.kubeconfig("none"))?;
        let config = folder.join("ringwall.yaml");
        fs::write(&config, configuration(folder, verify))?;
        let started = Instant::now();
        let appliance = Appliance::launch_with(&bed, &built_binary()?, &config)?;
        let pid = |status: &Value| {
            status["control"]["pid"]
                .as_u64()
                .and_then(|pid| u32::try_from(pid).ok())
        };
        let decides = |status: &Value| {
            let generation = status["dataplane"]["snapshot"]["generation"]
                .as_u64()
                .unwrap_or(0);
            let workers = status["dataplane"]["workers"].as_array();
            generation > 0 && workers.is_some_and(|all| all.iter().all(|one| one["generation"] == generation))
        };
        wait_for(&appliance, "the first snapshot", decides)?;
        let first = started.elapsed();

        // A control that is started anew finds the go-between.
        let proxy = SocketProxy::start(&folder.join("run"))?;
        let old = appliance.signal("control", Signal::SIGKILL)?;
        let status = wait_for(&appliance, "control behind the go-proxy", |status| {
            pid(status).is_some_and(|pid| i64::from(pid) != i64::from(old.as_raw())) && proxy.adopted() > 0
        })?;
        Ok((
            Self {
                proxy,
                stop: Arc::default(),
                senders: Mutex::default(),
                control: pid(&status).context("control has no process id")?,
                appliance,
                first,
                bed,
            },
            server,
        ))
    }

    /// Snapshots that were adopted by all workers so far.
    pub(super) fn adopted(&self) -> u64 {
        self.proxy.adopted()
    }

    /// Looks what has arrived in the snapshots that were adopted since the last look.
    pub(super) fn poll_adoptions(&self, arrivals: &mut AdoptionTracker) {
        while let Some((snapshot, at)) = self.proxy.next() {
            arrivals.look(&snapshot, at);
        }
    }

    /// As [`super::in_process::InProcess::establish`]; the packets are sent from both ends of the wire.
    pub(super) fn establish(&self, addresses: &[IpAddr], wanted: usize) -> anyhow::Result<usize> {
        let newest = locked(&self.proxy.state)
            .newest
            .clone()
            .context("no snapshot yet")?;
        let found: Vec<(Ipv4Addr, Ipv4Addr)> = pairs(&newest, addresses, wanted)
            .into_iter()
            .filter_map(|pair| match pair {
                (IpAddr::V4(src), IpAddr::V4(dst)) => Some((src, dst)),
                _ => None,
            })
            .collect();
        let [inner, outer] = self.bed.routers.as_slice() else {
            bail!("a wire has two routers, this bed has {}", self.bed.routers.len());
        };
        let (mut requests, mut answers) = (Vec::new(), Vec::new());
        for (number, (src, dst)) in found.iter().enumerate() {
            let client = 1024 + (number % 60_000) as u16;
            let udp = |from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16)| {
                let frame = Template::new(IpAddr::V4(from).into(), IpAddr::V4(to).into()).udp(
                    ports.0,
                    ports.1,
                    b"datagram",
                );
                (frame[ETHERNET..].to_vec(), to)
            };
            requests.push(udp(*src, *dst, (client, 9000)));
            answers.push(udp(*dst, *src, (9000, client)));
        }
        let mut senders = locked(&self.senders);
        for (router, packets) in [(inner, requests), (outer, answers)] {
            let (router, stop) = (Arc::clone(router), Arc::clone(&self.stop));
            senders.push(std::thread::spawn(move || send(&router, &packets, &stop)));
        }
        Ok(found.len())
    }

    /// What became of the packets of connections, as the dataplane counts it.
    pub(super) fn established(&self) -> anyhow::Result<Established> {
        let status = self.appliance.status()?;
        let count = |group: &str, name: &str| {
            status["dataplane"][group][name]
                .as_u64()
                .ok_or_else(|| anyhow!("the status has no {group}.{name}"))
        };
        Ok(Established {
            packets: count("frames", "received")?,
            restamped: count("flows", "restamped")?,
            again: [
                count("flows", "rejudged")?,
                count("flows", "revoked")?,
                count("flows", "created")?,
            ],
        })
    }

    /// Fails if it has ended.
    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.appliance.ended(Duration::ZERO)? {
            None => Ok(()),
            Some(status) => bail!("`ringwall run` ended ({status}):\n{}", self.log_text()),
        }
    }

    /// What it has logged.
    pub(super) fn log_text(&self) -> String {
        self.appliance.log()
    }
}

impl Drop for TwoProcess {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for sender in locked(&self.senders).drain(..) {
            match sender.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("the connections' packets were not all sent: {error:#}"),
                Err(_) => eprintln!("the connections' packets were not all sent"),
            }
        }
    }
}

fn configuration(folder: &Path, verify: &str) -> String {
    format!(
        "apiVersion: ringwall.io/v1alpha1\nkind: Gateway\nname: bench\nmode: enforce\nverify: {verify}\n\
         cluster: {{podCIDRs: [{1}], serviceCIDRs: [{SERVICE_CIDR}]}}\n\
         source: {{kubeconfig: {0}/kubeconfig}}\nworkers: {{cpus: auto, count: 2, idlePolicy: adaptive}}\n\
         antiSpoofing: off\ninterfaces:\n- {{name: in, side: any}}\n- {{name: out, side: any}}\n\
         wires:\n- {{name: w0, interfaces: [in, out], failMode: closed}}\n\
         runtimeDir: {0}/run\nstateDir: {0}/state\nbpffs: {0}/bpf\ntelemetry: {{metricsListen: \"127.0.0.1:0\"}}\n",
        folder.display(),
        POD_CIDRS.join(", ")
    )
}

fn wait_for(appliance: &Appliance, what: &str, condition: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let end = Instant::now() + START_TIMEOUT;
    loop {
        let status = appliance.status();
        if let Ok(status) = &status
            && condition(status)
        {
            return Ok(status.clone());
        }
        if Instant::now() > end {
            bail!(
                "no {what} within {} s; status:\n{status:?}\nit says:\n{}",
                START_TIMEOUT.as_secs(),
                appliance.log()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends packets into the wire, again and again.
fn send(from: &Netns, packets: &[(Vec<u8>, Ipv4Addr)], stop: &AtomicBool) -> anyhow::Result<()> {
    from.enter().context("entering the sender's namespace")?;
    // With a header of our own.
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
    let mut due = Instant::now();
    for batch in packets.chunks(SEND_BURST).cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for (packet, to) in batch {
            socket.send_to(packet, &SocketAddr::from((*to, 0)).into())?;
        }
        due += SEND_INTERVAL;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// Relays the messages between control and the dataplane, and notes what the dataplane adopts.
#[derive(Default)]
struct SocketProxy {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Published, and not known to be adopted yet.
    published: VecDeque<Snapshot>,
    /// Generations that all workers adopted, with the time of the report; not polled yet.
    adoptions: VecDeque<(u64, Instant)>,
    adopted: u64,
    /// What a delta is to.
    newest: Option<Snapshot>,
}

impl SocketProxy {
    /// Takes the place of the dataplane's socket, for connections to come.
    fn start(runtime: &Path) -> anyhow::Result<Arc<Self>> {
        let (socket, real) = (runtime.join(DATAPLANE_SOCKET), runtime.join("real.sock"));
        fs::rename(&socket, &real).context("cannot move the dataplane's socket")?;
        let listener = Listener::bind(&socket)?;
        let proxy = Arc::new(Self::default());
        let serving = Arc::clone(&proxy);
        std::thread::spawn(move || {
            // Until the process ends.
            while let Ok(near) = listener.accept() {
                let Ok(far) = Connection::connect(&real) else {
                    continue;
                };
                let (near, far) = (Arc::new(near), Arc::new(far));
                for back in [false, true] {
                    let (proxy, near, far) = (Arc::clone(&serving), Arc::clone(&near), Arc::clone(&far));
                    std::thread::spawn(move || {
                        // Ends when either side does.
                        let _ = if back {
                            proxy.answers(&near, &far)
                        } else {
                            proxy.requests(&near, &far)
                        };
                        near.shutdown();
                        far.shutdown();
                    });
                }
            }
        });
        Ok(proxy)
    }

    fn adopted(&self) -> u64 {
        locked(&self.state).adopted
    }

    /// From control to the dataplane.
    fn requests(&self, near: &Connection, far: &Connection) -> Result<(), ProtocolError> {
        loop {
            let Received { message, fd } = near.receive::<Request>()?;
            let image = match (&message, &fd) {
                // Before it is passed on: both would read from one place.
                (Request::Publish { bytes, .. }, Some(fd)) => Some(read_image(fd.try_clone()?, *bytes)?),
                _ => None,
            };
            far.send(&message, fd.as_ref().map(AsFd::as_fd))?;
            if let (Request::Publish { base, .. }, Some(image)) = (message, image) {
                let mut state = locked(&self.state);
                let snapshot = match (base, &state.newest) {
                    (Some(_), Some(newest)) => newest.apply(&image),
                    _ => Snapshot::open(&image),
                };
                let snapshot = snapshot.map_err(|error| ProtocolError::Malformed(error.to_string()))?;
                state.newest = Some(snapshot.clone());
                state.published.push_back(snapshot);
            }
        }
    }

    /// From the dataplane to control.
    fn answers(&self, near: &Connection, far: &Connection) -> Result<(), ProtocolError> {
        loop {
            let Received { message, .. } = far.receive::<Reply>()?;
            let at = Instant::now();
            near.send(&message, None)?;
            if let Reply::Adopted { generation, .. } = message {
                let mut state = locked(&self.state);
                state.adopted += 1;
                state.adoptions.push_back((generation, at));
            }
        }
    }

    /// The next snapshot that was adopted.
    fn next(&self) -> Option<(Snapshot, Instant)> {
        let mut state = locked(&self.state);
        let (generation, at) = *state.adoptions.front()?;
        // Those before it were refused.
        while state.published.front()?.generation().0 < generation {
            state.published.pop_front();
        }
        state.adoptions.pop_front();
        state.published.pop_front().map(|snapshot| (snapshot, at))
    }
}
