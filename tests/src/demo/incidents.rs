//! A transfer revoked in the middle, the dataplane killed, and where every frame went.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use ringwall_testbed::{
    appliance::{Appliance, Options, Signal},
    netns::Netns,
    probe::{Outcome, Service, attempt},
    topology::{Bed, EXTERNAL, Plan, Role},
};
use serde_json::Value;

use super::{
    Demo,
    recipe::{self, Recipe},
    show::Look,
};

/// Long enough for an attempt that should work, and for one that should not to be called silent.
const SHORT: Duration = Duration::from_millis(600);

/// A running download.
pub(super) struct Download {
    begin: Instant,
    bytes: Arc<AtomicU64>,
    /// Microseconds after `begin` of the last byte.
    last: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Download {
    pub(super) fn start(from: &Netns, to: SocketAddr) -> anyhow::Result<Self> {
        let mut stream = from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)))??;
        stream.write_all(b"GET /stream HTTP/1.0\r\n\r\n")?;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (bytes, last, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let begin = Instant::now();
        let thread = std::thread::spawn({
            let (bytes, last, stop) = (bytes.clone(), last.clone(), stop.clone());
            move || {
                let mut buffer = vec![0; 65536];
                while !stop.load(Ordering::Relaxed) {
                    match stream.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(length) => {
                            bytes.fetch_add(length as u64, Ordering::Relaxed);
                            last.store(begin.elapsed().as_micros() as u64, Ordering::Relaxed);
                        }
                        Err(error)
                            if matches!(
                                error.kind(),
                                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                            ) => {}
                        Err(_) => break,
                    }
                }
            }
        });
        Ok(Self {
            begin,
            bytes,
            last,
            stop,
            thread: Some(thread),
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn last(&self) -> Duration {
        Duration::from_micros(self.last.load(Ordering::Relaxed))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Demo {
    pub(super) fn incidents(&mut self, bed: &Bed, mut appliance: Appliance) -> anyhow::Result<()> {
        let built_in = recipe::load(None)?;
        let find = |part: &str| {
            built_in
                .iter()
                .find(|recipe| recipe.slug.contains(part))
                .with_context(|| format!("no recipe {part}"))
        };
        // In and out: with the direction of the acknowledgements alone denied, the sender would still try for a while.
        let (open, deny) = (find("no-policy")?, find("deny-all-both-ways")?);
        self.revoke(bed, &appliance, open, deny)?;
        self.accounts(bed, &appliance)?;
        self.kill_closed(bed, &appliance, open)?;
        let ended = appliance.stop()?;
        self.check(
            ended.success(),
            "`ringwall run` ends on SIGTERM; without it the programs stay and the fail mode holds",
        );
        drop(appliance);
        self.kill_open()
    }

    pub(super) fn heading(&self, text: &str) {
        self.show.line(&self.show.paint(Look::Bold, text));
    }

    fn revoke(
        &mut self,
        bed: &Bed,
        appliance: &Appliance,
        open: &Recipe,
        deny: &Recipe,
    ) -> anyhow::Result<()> {
        self.heading("A transfer revoked in the middle");
        appliance.apply(&open.objects)?;
        let (client, web) = (
            member(bed, open, "default/client")?,
            member(bed, open, "default/web")?,
        );
        let download = Download::start(&client.ns, SocketAddr::new(web.v4.into(), 80))?;
        let patience = Instant::now();
        while (download.bytes() < 4_000_000 || patience.elapsed() < SHORT)
            && patience.elapsed() < Duration::from_secs(8)
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        let before = download.bytes();
        let flowing = patience.elapsed().as_secs_f64();
        let written = download.begin.elapsed();
        let adoption = appliance.apply(&deny.objects)?;
        let adopted = written + adoption.seen;
        std::thread::sleep(Duration::from_millis(800));
        let last = download.last();
        let revoked = appliance.status()?["dataplane"]["flows"]["revoked"]
            .as_u64()
            .unwrap_or(0);
        self.check(
            before > 1_000_000,
            &format!(
                "default/client downloads from default/web: {} MB in {flowing:.1} s",
                before / 1_000_000
            ),
        );
        self.check(
            last < adopted + Duration::from_millis(50),
            &format!(
                "a policy that denies it is written: every worker has adopted it {:.1} ms later (measured by control), the last byte \
                 came after {:.1} ms; {revoked} flow(s) revoked",
                adoption.event_to_adopted.unwrap_or(adoption.seen).as_secs_f64() * 1e3,
                (last.as_secs_f64() - written.as_secs_f64()).max(0.0) * 1e3,
            ),
        );
        let silent = download.bytes();
        appliance.apply(&open.objects)?;
        std::thread::sleep(Duration::from_millis(1500));
        self.check(
            download.bytes() > silent,
            "the policy is taken back: the same connection goes on where it stopped",
        );
        self.show.line("");
        Ok(())
    }

    fn kill_closed(&mut self, bed: &Bed, appliance: &Appliance, open: &Recipe) -> anyhow::Result<()> {
        self.heading("The dataplane killed, failMode: closed");
        let (client, web) = (
            member(bed, open, "default/client")?,
            member(bed, open, "default/web")?,
        );
        let http = |from: &Netns, to: IpAddr, within| {
            from.run(|| attempt(None, to, Service::Tcp(80), within))
                .map_err(anyhow::Error::from)
        };
        self.check(
            http(&client.ns, web.v4.into(), SHORT)?.answered(),
            "before: default/client reaches default/web",
        );
        let mut idle = client
            .ns
            .run(|| TcpStream::connect_timeout(&SocketAddr::new(web.v4.into(), 80), SHORT))??;
        idle.set_read_timeout(Some(Duration::from_secs(3)))?;
        idle.write_all(b"GET /echo HTTP/1.0\r\n\r\n")?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            idle.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        // The supervisor would start it again at once.
        appliance.signal_supervisor(Signal::SIGSTOP)?;
        let dead = appliance.signal("dataplane", Signal::SIGKILL);
        let result = dead.map_err(anyhow::Error::from).and_then(|pid| {
            wait_until_dead(pid.as_raw())?;
            let pods = http(&client.ns, web.v4.into(), SHORT)?;
            let outside = http(&bed.external.ns, web.v4.into(), SHORT)?;
            let own = http(&bed.gateway, EXTERNAL.into(), SHORT)?;
            Ok((pods, outside, own))
        });
        let killed = Instant::now();
        appliance.signal_supervisor(Signal::SIGCONT)?;
        let (pods, outside, own) = result?;
        self.check(
            pods == Outcome::Silence,
            &format!("while it is dead: pod to pod {pods}"),
        );
        self.check(
            outside == Outcome::Silence,
            &format!("while it is dead: outside to pod {outside}"),
        );
        self.check(
            own.answered(),
            &format!("while it is dead: the gateway's own traffic {own}"),
        );
        let back = loop {
            if http(&client.ns, web.v4.into(), Duration::from_millis(200))?.answered() {
                break true;
            }
            if killed.elapsed() > Duration::from_secs(10) {
                break false;
            }
        };
        self.check(
            back,
            &format!(
                "started again by its supervisor: pods are connected after {:.0} ms",
                killed.elapsed().as_secs_f64() * 1e3
            ),
        );
        idle.write_all(b"still there?")?;
        let mut answer = [0; 12];
        let echoed = idle.read_exact(&mut answer).is_ok() && &answer == b"still there?";
        self.check(
            echoed,
            "a connection from before goes on: the flow table outlived the process",
        );
        self.show.line("");
        Ok(())
    }

    fn accounts(&mut self, bed: &Bed, appliance: &Appliance) -> anyhow::Result<()> {
        self.heading("The accounts");
        // Retransmissions and neighbour probes come to rest.
        let mut status = appliance.status()?;
        let mut device = device_frames(bed)?;
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(300));
            (status, device) = (appliance.status()?, device_frames(bed)?);
            if device.saturating_sub(self.before_us) == frames_seen(&status) {
                break;
            }
        }
        let frames = &status["dataplane"]["frames"];
        let count = |key: &str| frames[key].as_u64().unwrap_or(0);
        let (into, out) = (
            count("received") + count("generated"),
            count("forwarded") + count("dropped") + count("held"),
        );
        self.check(
            into == out && into > 0,
            &format!(
                "{} received + {} made = {} forwarded + {} dropped + {} held; {} passed to the kernel, {} lost before a worker",
                count("received"), count("generated"), count("forwarded"), count("dropped"), count("held"),
                count("toKernel"), count("lost"),
            ),
        );
        let seen = count("received") + count("toKernel") + count("lost");
        self.check(
            device.saturating_sub(self.before_us) == seen,
            &format!(
                "the devices' own counters say {} frames came in since the start: {seen} accounted for",
                device.saturating_sub(self.before_us)
            ),
        );
        let drops: Vec<String> = status["dataplane"]["drops"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, count)| count.as_u64() != Some(0))
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        let dropped: u64 = status["dataplane"]["drops"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(_, count)| count.as_u64())
            .sum();
        self.check(
            dropped == count("dropped"),
            &format!(
                "dropped, by reason: {}",
                if drops.is_empty() {
                    "none".into()
                } else {
                    drops.join(", ")
                }
            ),
        );
        self.show.line(&self.show.paint(
            Look::Dim,
            &format!(
                "         $ {} status --config {}/ringwall.yaml",
                self.program(),
                bed.folder().display()
            ),
        ));
        self.show.line("");
        Ok(())
    }

    fn kill_open(&mut self) -> anyhow::Result<()> {
        self.heading("The dataplane killed, failMode: open (a wire between two routers)");
        let plans = [Plan::new("default/web"), Plan::new("default/client").outside()];
        let bed = Bed::new(Role::Wire, &plans, 1)?;
        let recipe = recipe::load(None)?
            .into_iter()
            .find(|recipe| recipe.slug.contains("deny-all-to-an-application"))
            .context("no recipe")?;
        let objects: Vec<Value> = ringwall_objects(&bed, &recipe);
        let options = Options {
            fail_mode: "open",
            host_port: false,
            ..Options::default()
        };
        let mut appliance = Appliance::start(&bed, &self.binary, &options, &objects)?;
        let web: IpAddr = bed.member("default/web")?.v4.into();
        let client = &bed.member("default/client")?.ns;
        let http = |within| {
            client
                .run(|| attempt(None, web, Service::Tcp(80), within))
                .map_err(anyhow::Error::from)
        };
        let before = http(SHORT)?;
        self.check(
            before == Outcome::Silence,
            &format!("with a policy that denies it: {before}"),
        );
        appliance.signal_supervisor(Signal::SIGSTOP)?;
        let dead = appliance.signal("dataplane", Signal::SIGKILL);
        let result = dead.map_err(anyhow::Error::from).and_then(|pid| {
            wait_until_dead(pid.as_raw())?;
            http(Duration::from_millis(1500))
        });
        appliance.signal_supervisor(Signal::SIGCONT)?;
        let result = result?;
        self.check(
            result.answered(),
            &format!("while it is dead, frames go straight to the other end: {result}"),
        );
        let begin = Instant::now();
        let closed = loop {
            if http(Duration::from_millis(300))? == Outcome::Silence {
                break true;
            }
            if begin.elapsed() > Duration::from_secs(10) {
                break false;
            }
        };
        self.check(closed, "started again: the policy is enforced again");
        appliance.stop()?;
        Ok(())
    }
}

/// Frames that the dataplane has seen, wherever they went.
fn frames_seen(status: &serde_json::Value) -> u64 {
    let frames = &status["dataplane"]["frames"];
    let keys = ["received", "toKernel", "lost"];
    keys.iter().filter_map(|key| frames[key].as_u64()).sum()
}

/// Frames that the ports received before the dataplane counted. Taken when nothing comes in: else one that is under way
/// would be on one side alone.
pub(super) fn frames_uncounted(bed: &Bed, appliance: &Appliance) -> anyhow::Result<u64> {
    let look = || anyhow::Ok((device_frames(bed)?, frames_seen(&appliance.status()?)));
    let mut last = look()?;
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(100));
        let now = look()?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last.0.saturating_sub(last.1))
}

/// Frames that the kernel counts as received by the gateway's ports.
pub(super) fn device_frames(bed: &Bed) -> anyhow::Result<u64> {
    let table = bed.gateway.read("/proc/thread-self/net/dev")?;
    let ports = bed
        .pods
        .iter()
        .map(|pod| pod.port.as_str())
        .chain(["uplink", ringwall_testbed::appliance::HOST_PORT]);
    ports
        .map(|port| {
            table
                .lines()
                .find_map(|line| line.trim().strip_prefix(port)?.strip_prefix(':'))
                .and_then(|counters| counters.split_whitespace().nth(1)?.parse::<u64>().ok())
                .with_context(|| format!("no counters of {port} in /proc/net/dev"))
        })
        .sum()
}

fn member<'a>(
    bed: &'a Bed,
    recipe: &Recipe,
    name: &str,
) -> anyhow::Result<&'a ringwall_testbed::topology::Member> {
    recipe
        .pods
        .get(name)
        .and_then(|slot| bed.pods.get(*slot))
        .with_context(|| format!("no pod {name}"))
}

/// The recipe's objects with the addresses of a bed of two.
fn ringwall_objects(bed: &Bed, recipe: &Recipe) -> Vec<Value> {
    let mut objects: Vec<Value> = recipe
        .objects
        .iter()
        .filter(|object| object["kind"] != "Pod")
        .cloned()
        .collect();
    for pod in &bed.pods {
        let (namespace, name) = pod.name.split_once('/').unwrap_or_default();
        let app = if name == "web" { "web" } else { "client" };
        objects.push(
            ringwall_testbed::manifests::Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                labels: ringwall_testbed::manifests::labels([("app", app)]),
                addresses: vec![pod.v4.into(), pod.v6.into()],
                node: "node-a".to_owned(),
                ports: Vec::new(),
            }
            .object(),
        );
    }
    objects
}

/// A killed process still holds its sockets until it has ended.
fn wait_until_dead(pid: i32) -> anyhow::Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        let ended = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
        });
        if ended {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("process {pid} does not end")
}
