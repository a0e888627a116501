//! What outages of control, the API server and credentials cost traffic and policy.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use ringwall_testbed::{
    api_server::ApiServer,
    appliance::{self, Appliance, Signal, built_binary},
    manifests,
    topology::{Bed, Member, Plan, Role},
};
use serde_json::json;

use crate::figures::Figures;

/// Options of the benchmark.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// How often control is killed.
    #[arg(long, default_value_t = 100)]
    control: usize,
    /// How often the API server goes away for two seconds, with every connection.
    #[arg(long, default_value_t = 20)]
    server: usize,
    /// How often the token is replaced, in the kubeconfig and at the server at once.
    #[arg(long, default_value_t = 5)]
    credentials: usize,
}

/// Time between two datagrams of each stream.
const SEND_INTERVAL: Duration = Duration::from_millis(1);
/// Port of the stream of one flow, and of the one whose every datagram is a flow.
const PORTS: [u16; 2] = [7000, 7001];
/// How long the API server is away.
const SERVER_OUTAGE: Duration = Duration::from_secs(2);
/// How long the next policy may take to be in force: the figure that is promised.
const POLICY_DEADLINE: Duration = Duration::from_secs(60);
/// For datagrams on their way.
const DRAIN: Duration = Duration::from_millis(500);

/// Datagrams of one stream.
#[derive(Default)]
struct Stream {
    sent: AtomicU64,
    received: AtomicU64,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let bed = Bed::new(
        Role::Routed,
        &[
            Plan::new("bench/server"),
            Plan::new("bench/client"),
            Plan::new("bench/stranger"),
        ],
        1,
    )?;
    let server = bed.gateway.run(ApiServer::start)??;
    let kubeconfig = bed.folder().join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig("token-0"))?;
    server.require_token("token-0");
    server.apply(manifests::namespace("bench", &manifests::labels([])));
    for pod in &bed.pods {
        server.apply(object(pod));
    }
    server.apply(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "server", "namespace": "bench"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]},
    }));
    let firewall = Appliance::start(
        &bed,
        &built_binary()?,
        &appliance::Options {
            source: Some(format!("{{kubeconfig: {}}}", kubeconfig.display())),
            ..appliance::Options::default()
        },
        &[],
    )?;
    let [to, client, stranger] = bed.pods.as_slice() else {
        bail!("a bed of three pods has {}", bed.pods.len());
    };
    let (one_flow, new_flows, denied) = (Stream::default(), Stream::default(), Stream::default());
    let stop = AtomicBool::new(false);
    let mut ages: [Vec<f64>; 3] = Default::default();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let receivers = [receiver(to, PORTS[0])?, receiver(to, PORTS[1])?];
        let mut threads = Vec::new();
        threads.push(scope.spawn(|| send(client, to, PORTS[0], false, &one_flow, &stop)));
        threads.push(scope.spawn(|| send(client, to, PORTS[1], true, &new_flows, &stop)));
        threads.push(scope.spawn(|| send(stranger, to, PORTS[0], false, &denied, &stop)));
        let counted = [&one_flow, &new_flows];
        for (socket, stream) in receivers.into_iter().zip(counted) {
            let (stop, stranger, denied) = (&stop, stranger.v4, &denied);
            threads.push(scope.spawn(move || count(&socket, stream, stranger.into(), denied, stop)));
        }
        let outcome = (|| {
            // A policy that says what the one before says is no new one.
            let mut policies = 1000..;
            let mut next_policy = || next_policy(&firewall, &server, policies.next().unwrap_or_default());
            for round in 0..options.control {
                progress("control killed", round, options.control);
                kill(&firewall, "control")?;
                ages[0].push(next_policy()?);
            }
            for round in 0..options.server {
                progress("API server away", round, options.server);
                server.set_away(true);
                std::thread::sleep(SERVER_OUTAGE);
                let began = Instant::now();
                server.set_away(false);
                next_policy()?;
                ages[1].push((began.elapsed() + SERVER_OUTAGE).as_secs_f64());
            }
            for round in 1..=options.credentials {
                progress("token replaced", round - 1, options.credentials);
                let token = format!("token-{round}");
                server.require_token(&token);
                fs::write(&kubeconfig, server.kubeconfig(&token))?;
                // The connections that are open were let in by the token before.
                server.set_away(true);
                server.set_away(false);
                ages[2].push(next_policy()?);
            }
            Ok(())
        })();
        std::thread::sleep(DRAIN);
        stop.store(true, Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a stream panicked"))??;
        }
        outcome
    })?;
    let what = ["control killed", "API server away for 2 s", "token replaced"];
    for (what, ages) in what.iter().zip(ages) {
        if let Some(figures) = Figures::of(ages, "s") {
            println!("{what:<24} next policy in force after: {figures}");
            ensure!(
                figures.quantile(1.0) < POLICY_DEADLINE.as_secs_f64(),
                "{what}: a policy was older than {POLICY_DEADLINE:?}"
            );
        }
    }
    let mut lost = 0;
    for (what, stream) in [("one flow", &one_flow), ("a flow per datagram", &new_flows)] {
        let (sent, received) = (stream.sent.load(Relaxed), stream.received.load(Relaxed));
        println!(
            "{what:<24} {sent} datagrams, {} lost",
            sent.saturating_sub(received)
        );
        lost += sent.saturating_sub(received);
    }
    println!(
        "{:<24} {} datagrams, {} arrived",
        "denied",
        denied.sent.load(Relaxed),
        denied.received.load(Relaxed)
    );
    ensure!(denied.received.load(Relaxed) == 0, "denied datagrams arrived");
    ensure!(lost == 0, "{lost} datagrams were lost");
    Ok(())
}

/// Says how far it is, now and then: the whole run takes some ten minutes.
fn progress(what: &str, round: usize, of: usize) {
    if round.is_multiple_of(10) {
        eprintln!("{what}: {round} of {of}");
    }
}

/// A pod of the bed, labelled with its name.
fn object(pod: &Member) -> serde_json::Value {
    let name = pod.name.rsplit('/').next().unwrap_or_default().to_owned();
    manifests::Pod {
        namespace: "bench".to_owned(),
        labels: manifests::labels([("app", &name)]),
        name,
        addresses: vec![pod.v4.into(), pod.v6.into()],
        node: "n1".to_owned(),
        ports: Vec::new(),
    }
    .object()
}

/// Changes policy at the server, to one about another port than before, and waits until every worker decides by it: in seconds.
fn next_policy(firewall: &Appliance, server: &ApiServer, port: u16) -> anyhow::Result<f64> {
    let generation = |status: &serde_json::Value| {
        let workers = status["dataplane"]["workers"].as_array()?;
        workers.iter().map(|worker| worker["generation"].as_u64()).min()?
    };
    let before = generation(&firewall.status()?).context("the dataplane says no generation")?;
    let began = Instant::now();
    server.apply(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "round", "namespace": "bench"},
        "spec": {"podSelector": {"matchLabels": {"app": "stranger"}}, "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"port": port}]}]},
    }));
    while generation(&firewall.status()?).is_none_or(|now| now <= before) {
        ensure!(
            began.elapsed() < POLICY_DEADLINE * 2,
            "no policy arrives any more: {}",
            firewall.log()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(began.elapsed().as_secs_f64())
}

fn receiver(to: &Member, port: u16) -> anyhow::Result<UdpSocket> {
    let socket = to.ns.run(|| UdpSocket::bind((to.v4, port)))??;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    // What the machine is too busy to read is not the firewall's loss.
    socket2::SockRef::from(&socket).set_recv_buffer_size(8 << 20)?;
    Ok(socket)
}

/// Sends until told to stop; from another port each time, where every datagram is to be a flow.
fn send(
    from: &Member,
    to: &Member,
    port: u16,
    anew: bool,
    stream: &Stream,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    from.ns.enter()?;
    let bind = || UdpSocket::bind((from.v4, 0));
    let mut socket = bind()?;
    let start = Instant::now();
    while !stop.load(Relaxed) {
        // Paced by the clock, so that a late wake-up does not lower the rate.
        let due = (start.elapsed().as_nanos() / SEND_INTERVAL.as_nanos()) as u64;
        while stream.sent.load(Relaxed) < due {
            if anew {
                socket = bind()?;
            }
            socket.send_to(&[0; 8], SocketAddr::new(to.v4.into(), port))?;
            stream.sent.fetch_add(1, Relaxed);
        }
        std::thread::sleep(SEND_INTERVAL / 2);
    }
    Ok(())
}

/// Counts until told to stop.
fn count(
    socket: &UdpSocket,
    stream: &Stream,
    stranger: IpAddr,
    denied: &Stream,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut datagram = [0; 8];
    loop {
        match socket.recv_from(&mut datagram) {
            Ok((_, from)) if from.ip() == stranger => denied.received.fetch_add(1, Relaxed),
            Ok(_) => stream.received.fetch_add(1, Relaxed),
            Err(_) if stop.load(Relaxed) => return Ok(()),
            Err(_) => 0,
        };
    }
}

/// Kills a process that may just be starting.
fn kill(firewall: &Appliance, process: &str) -> anyhow::Result<()> {
    let until = Instant::now() + POLICY_DEADLINE;
    while firewall.signal(process, Signal::SIGKILL).is_err() {
        ensure!(
            Instant::now() < until,
            "{process} does not come back: {}",
            firewall.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
