//! A node beside its CNI: the kernel bridges, translates and encapsulates, and ringwall judges where packets leave.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use ringwall_testbed::{
    appliance::{Appliance, Options, Signal},
    manifests::{self, Pod, labels},
    netns::Netns,
    probe::{Service, attempt},
    serve::Servers,
    topology::{Bed, EXTERNAL, GATEWAY, Plan, Role, pod_addresses},
};

use super::{
    Demo,
    dns::{self, NameServer},
    incidents::Download,
    judge,
    recipe::{self, Recipe, SLOTS},
    show::Look,
};

/// Recipes that the users' documents try through a Service.
const RECIPES: [&str; 5] = ["00-", "01-", "02-", "09-", "13-"];
const HTTP: Service = Service::Tcp(80);
/// The Service of the cluster's name server.
const DNS: Ipv4Addr = Ipv4Addr::new(10, 112, 0, 10);
/// The node port in front of default/web.
const NODE_PORT: u16 = 30080;
/// As the documents' `wget --timeout=2`, a little shorter.
const WITHIN: Duration = Duration::from_millis(1300);
/// Where something should come: a busy machine may be late.
const PATIENT: Duration = Duration::from_secs(4);
/// How long a transfer is measured.
const SPAN: Duration = Duration::from_millis(1200);
/// The pod of the second node, and its Service.
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 111, 200, 5);
const REMOTE_NAME: &str = "default/api";
const NODE_B: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// The second node, its pod, and what serves there.
struct SecondNode {
    _node: Netns,
    pod: Arc<Netns>,
    _servers: Servers,
}

/// An attempt as somebody types it.
struct Typed {
    from: String,
    /// The Service's pod.
    to: String,
    /// What is typed.
    command: String,
    promise: Option<(bool, String)>,
}

impl Demo {
    pub(super) fn node(&mut self) -> anyhow::Result<()> {
        let show = self.show;
        show.line(&show.paint(
            Look::Bold,
            "\nA node beside its CNI: Services, node ports, an overlay",
        ));
        let recipes: Vec<Recipe> = recipe::load(None)?
            .into_iter()
            .filter(|recipe| RECIPES.iter().any(|wanted| recipe.slug.starts_with(wanted)))
            .map(with_remote_pod)
            .collect();
        let first = recipes.first().context("no recipe")?;
        show.progress("making a node with bridge, Services, DNS, and a second one behind VXLAN");
        let bed = bed(first)?;
        let second = second_node(&bed)?;
        let slot = |pod: &str| {
            first
                .pods
                .get(pod)
                .copied()
                .with_context(|| format!("no pod {pod}"))
        };
        let dns_slot = slot("kube-system/dns")?;
        translate(&bed, slot("default/web")?, dns_slot)?;
        let names = names(first);
        let _name_server = NameServer::start(&bed.pods[dns_slot].ns, names.clone())?;
        for line in [
            " client ─┐                                  ┌── uplink ── external 192.0.2.10",
            " foo    ─┤         node 1: ringwall run     │",
            " web    ─┼─ cni0 ─ bridge, Services, NAT ───┼── flannel.1 ══ VXLAN ══ node 2 ─ api",
            " dns    ─┘         judged where it leaves   │",
        ] {
            show.line(&show.paint(Look::Accent, line));
        }
        show.line(
            "\nThe kernel carries the packets, nft rules stand in for kube-proxy. `wanted` is the literal evaluator's verdict about the pods\n\
             at both ends, whatever Service, node port or masquerade lies between them; node 2 has no ringwall.\n",
        );
        let before = self.rates(&bed, first)?;
        let options = Options {
            more: "conntrack: {maxEntries: 16384}\n".to_owned(), // less to make at the start
            ..Options::default()
        };
        show.progress("starting `ringwall run`");
        let mut appliance = Appliance::start(&bed, &self.binary, &options, &first.objects)?;
        for recipe in &recipes {
            self.through_services(&bed, &second, &appliance, recipe, &names)?;
        }
        appliance.apply(&first.objects)?;
        self.bulk(&bed, first, &before)?;
        self.killed(&bed, first, &appliance)?;
        self.removed(&bed, &recipes, &mut appliance)
    }

    /// One recipe, typed as in its text.
    fn through_services(
        &mut self,
        bed: &Bed,
        second: &SecondNode,
        appliance: &Appliance,
        recipe: &Recipe,
        names: &BTreeMap<String, Ipv4Addr>,
    ) -> anyhow::Result<()> {
        let show = self.show;
        show.progress(&format!("{}: applying", recipe.title));
        appliance.apply(&recipe.objects)?;
        let cluster = judge::cluster(recipe, &bed.folder().join("recipes"))?;
        let all = typed(recipe);
        let address = |name: &str| -> anyhow::Result<IpAddr> {
            if name == REMOTE_NAME {
                return Ok(REMOTE.into());
            }
            let (addresses, _) = recipe.end(name).with_context(|| format!("no end {name}"))?;
            addresses.first().copied().context("no address")
        };
        let allows = |from: &str, to: &str, service: Service| -> anyhow::Result<bool> {
            let verdict = judge::verdict(&cluster, address(from)?, address(to)?, service);
            // What reaches the other node's pod is that node's to judge, which has no ringwall.
            Ok(verdict.egress.allow && (to == REMOTE_NAME || verdict.ingress.allow))
        };
        let mut outcomes = Vec::new();
        for one in &all {
            let wanted = allows(&one.from, &one.to, HTTP)?
                && (one.from == "external" || allows(&one.from, "kube-system/dns", Service::Udp(53))?);
            outcomes.push((wanted, String::new()));
        }
        std::thread::scope(|scope| -> anyhow::Result<()> {
            let threads: Vec<_> = all
                .iter()
                .zip(&outcomes)
                .map(|(one, (wanted, _))| {
                    let within = if *wanted { PATIENT } else { WITHIN };
                    scope.spawn(move || types(bed, second, recipe, one, names, within))
                })
                .collect();
            for (thread, outcome) in threads.into_iter().zip(&mut outcomes) {
                outcome.1 = thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(())
        })?;
        show.line(&format!(
            "{}  {}",
            show.paint(Look::Bold, &recipe.title),
            show.paint(Look::Dim, &recipe.slug)
        ));
        for (one, (wanted, got)) in all.iter().zip(outcomes) {
            self.attempts += 1;
            let server = served_as(bed, recipe, &one.to);
            let good = (got == server) == wanted
                && (wanted || !got.starts_with("slot"))
                && one.promise.as_ref().is_none_or(|(allow, _)| *allow == wanted);
            self.failures += usize::from(!good);
            let word = |allow: bool| if allow { "allow" } else { "deny " };
            let got = if got == server { "answer" } else { &got };
            let look = if good { Look::Good } else { Look::Bad };
            let said = one.promise.as_ref().map_or("-    ", |(allow, _)| word(*allow));
            let mut line = format!(
                "  {} text {said}  wanted {}  got {:<20}  {:<16} $ {}",
                show.mark(good),
                word(wanted),
                show.paint(look, got),
                one.from,
                one.command,
            );
            if let Some((_, text)) = &one.promise {
                line.push_str(&show.paint(Look::Dim, &format!("  \"{text}\"")));
            }
            show.line(&line);
        }
        show.line("");
        Ok(())
    }

    /// Bytes per second of transfers: through the Service on the node, and from the other node.
    fn rates(&self, bed: &Bed, recipe: &Recipe) -> anyhow::Result<[f64; 2]> {
        let client = self::member(bed, recipe, "default/client")?;
        let mut rates = [0.0; 2];
        for (rate, to) in rates.iter_mut().zip([
            service_of(recipe, "default/web")?,
            service_of(recipe, REMOTE_NAME)?,
        ]) {
            self.show.progress("a transfer");
            let download = Download::start(client, SocketAddr::new(to.into(), 80))?;
            std::thread::sleep(SPAN / 4);
            let (bytes, begin) = (download.bytes(), Instant::now());
            std::thread::sleep(SPAN);
            *rate = (download.bytes() - bytes) as f64 / begin.elapsed().as_secs_f64();
        }
        Ok(rates)
    }

    fn bulk(&mut self, bed: &Bed, recipe: &Recipe, before: &[f64; 2]) -> anyhow::Result<()> {
        self.heading("Bulk TCP with and without ringwall");
        let with = self.rates(bed, recipe)?;
        for ((what, without), with) in ["http://web on the node", "http://api on the other node, by VXLAN"]
            .iter()
            .zip(before)
            .zip(with)
        {
            let gigabits = |rate: f64| rate * 8.0 / 1e9;
            self.check(
                with > 0.0,
                &format!(
                    "{what:<40} the kernel alone {:.2} Gbit/s, with ringwall {:.2} Gbit/s ({:.0} %)",
                    gigabits(*without),
                    gigabits(with),
                    with / without * 100.0
                ),
            );
        }
        self.show.line("");
        Ok(())
    }

    fn killed(&mut self, bed: &Bed, recipe: &Recipe, appliance: &Appliance) -> anyhow::Result<()> {
        self.heading("The dataplane killed");
        let client = member(bed, recipe, "default/client")?;
        let web: IpAddr = service_of(recipe, "default/web")?.into();
        let download = Download::start(client, SocketAddr::new(web, 80))?;
        std::thread::sleep(SPAN / 4);
        // The supervisor would start it again at once.
        appliance.signal_supervisor(Signal::SIGSTOP)?;
        let killed = appliance.signal("dataplane", Signal::SIGKILL);
        std::thread::sleep(SPAN); // the programs wait a second for the workers
        let (bytes, begin) = (download.bytes(), Instant::now());
        let silent = client.run(|| attempt(None, web, HTTP, WITHIN))?;
        let (went_on, took) = (download.bytes() - bytes, begin.elapsed());
        appliance.signal_supervisor(Signal::SIGCONT)?;
        killed?;
        self.check(
            went_on > 0,
            &format!(
                "while it is dead: the transfer goes on, {} MB in {:.1} s, decided by the table in the kernel",
                went_on / 1_000_000,
                took.as_secs_f64()
            ),
        );
        self.check(
            !silent.answered(),
            &format!("while it is dead: a new connection {silent} (failMode: closed)"),
        );
        let again = Instant::now();
        let mut back = false;
        while !back && again.elapsed() < Duration::from_secs(10) {
            back = client
                .run(|| attempt(None, web, HTTP, Duration::from_millis(200)))?
                .answered();
        }
        self.check(
            back,
            &format!(
                "started again by its supervisor: new connections after {:.0} ms",
                again.elapsed().as_secs_f64() * 1e3
            ),
        );
        self.show.line("");
        Ok(())
    }

    /// Leaves a policy that denies in force, and takes ringwall away.
    fn removed(&mut self, bed: &Bed, recipes: &[Recipe], appliance: &mut Appliance) -> anyhow::Result<()> {
        self.heading("Removed from the node");
        let deny = recipes
            .iter()
            .find(|recipe| recipe.slug.starts_with("01-"))
            .context("no recipe that denies")?;
        appliance.apply(&deny.objects)?;
        let client = member(bed, deny, "default/client")?;
        let web: IpAddr = service_of(deny, "default/web")?.into();
        let denied = !client.run(|| attempt(None, web, HTTP, WITHIN))?.answered();
        let ended = appliance.stop()?;
        let config = appliance.config.to_string_lossy().into_owned();
        let detached = appliance.ringwall(&["detach", "--config", &config])?;
        let met = client.run(|| attempt(None, web, HTTP, PATIENT))?;
        let mut nft = Command::new("nft");
        nft.args(["list", "tables"]);
        let tables = bed.gateway.output(nft)?;
        let left = String::from_utf8_lossy(&tables.stdout).contains("ringwall");
        self.check(
            denied && ended.success() && detached.status.success() && !left && met.answered(),
            &format!("`ringwall detach` under a policy that denies: nothing of ringwall is left, and default/client → http://web {met}"),
        );
        Ok(())
    }
}

fn member<'a>(bed: &'a Bed, recipe: &Recipe, name: &str) -> anyhow::Result<&'a Netns> {
    let slot = recipe.pods.get(name).with_context(|| format!("no pod {name}"))?;
    Ok(&bed.pods.get(*slot).context("no such slot")?.ns)
}

/// The name that a pod's server answers with.
fn served_as(bed: &Bed, recipe: &Recipe, pod: &str) -> String {
    let slot = recipe.pods.get(pod).and_then(|slot| bed.pods.get(*slot));
    slot.map_or_else(|| REMOTE_NAME.to_owned(), |member| member.name.clone())
}

/// Address of the Service in front of a pod.
fn service_of(recipe: &Recipe, pod: &str) -> anyhow::Result<Ipv4Addr> {
    if pod == REMOTE_NAME {
        return Ok(Ipv4Addr::new(10, 112, 2, 1));
    }
    let slot = recipe.pods.get(pod).with_context(|| format!("no pod {pod}"))?;
    Ok(service_of_slot(*slot))
}

fn service_of_slot(slot: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 112, 1, slot as u8 + 1)
}

/// Names of Services, each with the name of its pod.
fn names(recipe: &Recipe) -> BTreeMap<String, Ipv4Addr> {
    let pods = recipe.pods.keys().map(String::as_str).chain([REMOTE_NAME]);
    pods.filter_map(|pod| {
        let (namespace, name) = pod.split_once('/')?;
        let address = service_of(recipe, pod).ok()?;
        Some((format!("{name}.{namespace}.svc.cluster.local"), address))
    })
    .collect()
}

fn with_remote_pod(mut recipe: Recipe) -> Recipe {
    recipe
        .objects
        .push(manifests::node("node-b", &[NODE_B.into()], &[]));
    let (namespace, name) = REMOTE_NAME.split_once('/').unwrap_or_default();
    let pod = Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        labels: labels([("app", "api")]),
        addresses: vec![REMOTE.into()],
        node: "node-b".to_owned(),
        ports: Vec::new(),
    };
    recipe.objects.push(pod.object());
    recipe
}

/// What the text promises about port 80, through Services; then the other node in both directions.
fn typed(recipe: &Recipe) -> Vec<Typed> {
    let mut all = Vec::new();
    for promise in recipe.expect.iter().filter(|promise| promise.service == HTTP) {
        let Some((namespace, name)) = promise.to.split_once('/') else {
            continue;
        };
        let command = match promise.from.split_once('/') {
            None if promise.from == "external" && promise.to == "default/web" => {
                format!("wget http://{GATEWAY}:{NODE_PORT}")
            }
            None => continue,
            Some((own, _)) if own == namespace => format!("wget http://{name}"),
            Some(_) => format!("wget http://{name}.{namespace}"),
        };
        all.push(Typed {
            from: promise.from.clone(),
            to: promise.to.clone(),
            command,
            promise: Some((promise.allow, promise.text.clone())),
        });
    }
    for (from, to, command) in [
        ("default/client", "default/web", "wget http://web"),
        ("default/foo", REMOTE_NAME, "wget http://api"),
    ] {
        if recipe.pods.contains_key(from) && !all.iter().any(|one| one.from == from && one.to == to) {
            all.push(Typed {
                from: from.to_owned(),
                to: to.to_owned(),
                command: command.to_owned(),
                promise: None,
            });
        }
    }
    all
}

/// Does what is typed; what came of it, in a word or the server's name.
fn types(
    bed: &Bed,
    second: &SecondNode,
    recipe: &Recipe,
    one: &Typed,
    names: &BTreeMap<String, Ipv4Addr>,
    within: Duration,
) -> anyhow::Result<String> {
    let described = |outcome: ringwall_testbed::probe::Outcome| match outcome {
        ringwall_testbed::probe::Outcome::Answered(name) => name.unwrap_or_default(),
        other => other.to_string(),
    };
    if one.from == "external" {
        let met = bed.external.ns.run(|| {
            attempt(
                Some(EXTERNAL.into()),
                GATEWAY.into(),
                Service::Tcp(NODE_PORT),
                within,
            )
        })?;
        return Ok(described(met));
    }
    let ns = if one.from == REMOTE_NAME {
        &*second.pod
    } else {
        member(bed, recipe, &one.from)?
    };
    let name = one
        .to
        .split_once('/')
        .map(|(namespace, name)| format!("{name}.{namespace}.svc.cluster.local"));
    let name = name.context("a Service's name")?;
    ensure!(names.contains_key(&name), "{name} is not served");
    let resolved = ns.run(|| dns::resolve((DNS, 53).into(), &name, within))??;
    let Some(address) = resolved else {
        return Ok("bad address".to_owned());
    };
    Ok(described(ns.run(|| attempt(None, address.into(), HTTP, within))?))
}

/// A node with a bridge, and room for every pod; the one for DNS has its port free.
fn bed(recipe: &Recipe) -> anyhow::Result<Bed> {
    let dns = recipe.pods.get("kube-system/dns");
    let plans: Vec<Plan> = (0..SLOTS)
        .map(|slot| Plan {
            name: format!("slot{slot}"),
            tcp: vec![80],
            udp: if Some(&slot) == dns { Vec::new() } else { vec![53] },
            outside: false,
            node: false,
        })
        .collect();
    Ok(Bed::new(Role::Bridge, &plans, 1)?)
}

/// As kube-proxy has it: a Service in front of every pod, a node port, masquerade.
fn translate(bed: &Bed, web: usize, dns: usize) -> anyhow::Result<()> {
    let mut before = String::new();
    for slot in 0..SLOTS {
        let (v4, _) = pod_addresses(slot);
        before.push_str(&format!(
            "ip daddr {} tcp dport 80 dnat ip to {v4}:80\n",
            service_of_slot(slot)
        ));
    }
    let [(web, _), (dns, _)] = [web, dns].map(pod_addresses);
    let rules = format!(
        "table inet proxy {{
            chain before {{
                type nat hook prerouting priority dstnat;
                {before}
                ip daddr 10.112.2.1 tcp dport 80 dnat ip to {REMOTE}:80
                ip daddr {DNS} udp dport 53 dnat ip to {dns}:53
                iifname uplink ip daddr {GATEWAY} tcp dport {NODE_PORT} dnat ip to {web}:80
            }}
            chain after {{
                type nat hook postrouting priority srcnat;
                iifname uplink ct status dnat masquerade
                ip saddr 10.111.0.0/24 oifname uplink masquerade
            }}
        }}"
    );
    let file = bed.folder().join("proxy.nft");
    fs::write(&file, rules)?;
    let mut nft = Command::new("nft");
    nft.arg("-f").arg(&file);
    let output = bed.gateway.output(nft)?;
    ensure!(
        output.status.success(),
        "nft: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Another node behind VXLAN as flannel makes it, with a pod.
fn second_node(bed: &Bed) -> anyhow::Result<SecondNode> {
    let node = Netns::new("second node")?;
    let pod = Arc::new(Netns::new("pod of the second node")?);
    let own = &bed.gateway;
    own.ip(&[
        format!(
            "link add underlay type veth peer name underlay netns {}",
            node.path()
        ),
        "address add 198.51.100.1/24 dev underlay".to_owned(),
        "link set underlay up".to_owned(),
    ])?;
    node.sysctl("net/ipv4/ip_forward", "1")?;
    node.ip(&[
        format!("address add {NODE_B}/24 dev underlay"),
        "link set underlay up".to_owned(),
        format!("link add pod type veth peer name eth0 netns {}", pod.path()),
        "address add 169.254.1.1/32 dev pod scope link".to_owned(),
        "link set pod up".to_owned(),
        format!("route add {REMOTE}/32 dev pod scope link"),
    ])?;
    pod.ip(&[
        format!("address add {REMOTE}/32 dev eth0"),
        "link set eth0 mtu 1450 up".to_owned(),
        "route add 169.254.1.1 dev eth0 scope link".to_owned(),
        "route add default via 169.254.1.1 dev eth0".to_owned(),
    ])?;
    for (ns, local, remote, number, peer) in [
        (&**own, Ipv4Addr::new(198, 51, 100, 1), NODE_B, 1, 0),
        (&node, NODE_B, Ipv4Addr::new(198, 51, 100, 1), 0, 1),
    ] {
        ns.ip(&[
            format!(
                "link add flannel.1 mtu 1450 type vxlan id 1 local {local} dev underlay dstport 8472 nolearning"
            ),
            format!("link set flannel.1 address 02:00:00:00:00:0{number} up"),
            format!("address add 10.111.20{number}.0/32 dev flannel.1"),
            format!("neighbour add 10.111.20{peer}.0 lladdr 02:00:00:00:00:0{peer} dev flannel.1 nud permanent"),
        ])?;
        let mut bridge = Command::new("bridge");
        let entry = format!("fdb add 02:00:00:00:00:0{peer} dev flannel.1 dst {remote}");
        bridge.args(entry.split(' '));
        ensure!(ns.output(bridge)?.status.success(), "bridge {entry}");
    }
    own.ip(&["route add 10.111.200.0/24 via 10.111.200.0 dev flannel.1 onlink"])?;
    node.ip(&["route add 10.111.0.0/24 via 10.111.201.0 dev flannel.1 onlink"])?;
    let servers = Servers::start(&pod, REMOTE_NAME, &[80], &[])?;
    Ok(SecondNode {
        _node: node,
        pod,
        _servers: servers,
    })
}
