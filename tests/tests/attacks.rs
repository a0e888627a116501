//! What outsiders, pods and neighbours may try, with real packets through the real appliance. `docs/security/threats.md`
//! says what is promised about each; `dataplane/src/worker/tests/attacks.rs` tries more of the same in memory.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed step is a failed test

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use ringwall_dataplane::wire::{TcpFlags, build::Template};
use ringwall_testbed::{
    appliance::{Appliance, Options, built_binary},
    netns::Netns,
    preflight::runs_here,
    probe::Service,
    tap::{Tap, mac_of},
    topology::{
        BRIDGE, Bed, EXTERNAL, EXTERNAL_V6, GATEWAY, GATEWAY_V6, Member, POD_CIDR, POD_CIDR_V6, Plan, Role,
    },
    world::{World, wait_for_answer},
};
use serde_json::{Value, json};

/// What one waits for a frame that should come.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long one waits for the next frame before looking at the time.
const WAIT: Duration = Duration::from_millis(50);
/// A port without a server.
const QUIET: u16 = 9;
/// Which of these texts arrive, until `last` has, or nothing more can be expected.
fn seen(tap: &Tap, texts: &[String], last: &str) -> Vec<String> {
    let until = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while Instant::now() < until {
        let Some(frame) = tap.receive(WAIT).unwrap() else {
            continue;
        };
        let holds = |text: &str| frame.windows(text.len()).any(|part| part == text.as_bytes());
        seen.extend(texts.iter().filter(|text| holds(text)).cloned());
        if holds(last) {
            return seen;
        }
    }
    panic!("`{last}` did not arrive: the bed does not work, so nothing can be said about attacks");
}

/// One direction across the firewall: where frames are put in, and where they come out.
struct Way {
    from: Tap,
    to: Tap,
    /// Where the frames go first.
    next: [u8; 6],
}

impl Way {
    fn template(&self, src: IpAddr, dst: IpAddr) -> Template {
        let mut template = Template::new(src.into(), dst.into());
        template.eth_src = self.from.mac();
        // Frames to groups keep the group's Ethernet address.
        if template.eth_dst[0] & 1 == 0 {
            template.eth_dst = self.next;
        }
        template
    }

    /// Sends attacks, each with a text of its own in it, and then what is allowed; asserts that this alone arrives.
    fn only_the_last_passes(&self, attacks: &[(&str, Vec<u8>)], allowed: Vec<u8>, last: &str) {
        self.only_passes(attacks, (self, allowed), last);
    }

    /// The same, where what is allowed is sent elsewhere.
    fn only_passes(&self, attacks: &[(&str, Vec<u8>)], (by, allowed): (&Self, Vec<u8>), last: &str) {
        for (_, frame) in attacks {
            self.from.send(frame).unwrap();
        }
        by.from.send(&allowed).unwrap();
        let texts: Vec<String> = attacks.iter().map(|(text, _)| (*text).to_owned()).collect();
        assert_eq!(seen(&self.to, &texts, last), [""; 0], "these passed");
    }

    /// The other way round, for a control: they all arrive.
    fn all_pass(&self, frames: &[(&str, Vec<u8>)]) {
        for (text, frame) in frames {
            self.from.send(frame).unwrap();
            seen(&self.to, &[], text);
        }
    }
}

/// A bed with a pod `shop/web`, which only it matters who reaches, `shop/box`, which may not do anything, and
/// `shop/client`, which may do everything.
struct Scene {
    bed: Bed,
    firewall: Appliance,
    world: World,
}

impl Scene {
    fn new(role: Role, more: &str) -> Self {
        Self::with(role, |options, _| options.more = more.to_owned())
    }

    fn with(role: Role, change: impl FnOnce(&mut Options, &mut World)) -> Self {
        let plans = [
            Plan::new("shop/web"),
            Plan::new("shop/box"),
            Plan::new("shop/client"),
        ];
        let bed = Bed::new(role, &plans, 1).unwrap();
        if role == Role::Node {
            // As beside kube-proxy, whose rules have the kernel track connections. The bridged node is one without.
            let track = "chain in { type filter hook prerouting priority 0; ct state new counter; };";
            bed.translate(&format!("table inet track {{ {track} }};"))
                .unwrap();
        }
        let mut world = World::of(&bed);
        let select = |app: &str, types: &[&str]| json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": types});
        world.policy("shop", "nobody-reaches-web", select("web", &["Ingress"]));
        world.policy("shop", "box-does-nothing", select("box", &["Ingress", "Egress"]));
        let mut options = Options {
            host_port: role == Role::Routed,
            outer_side: "outside",
            ..Options::default()
        };
        change(&mut options, &mut world);
        let firewall = Appliance::start(&bed, &built_binary().unwrap(), &options, &world.objects()).unwrap();
        Self { bed, firewall, world }
    }

    fn address(&self, name: &str, v6: bool) -> IpAddr {
        match name {
            "external" if v6 => EXTERNAL_V6.into(),
            "external" => EXTERNAL.into(),
            "gateway" if v6 => GATEWAY_V6.into(),
            "gateway" => GATEWAY.into(),
            name => self.bed.member(name).unwrap().address(v6),
        }
    }

    /// From the outsider to a pod.
    fn inward(&self, pod: &str) -> Way {
        match self.bed.role {
            Role::Routed | Role::Node | Role::Bridge => Way {
                from: Tap::open(&self.bed.external.ns, "eth0").unwrap(),
                to: Tap::open(&self.bed.member(pod).unwrap().ns, "eth0").unwrap(),
                next: mac_of(&self.bed.gateway, "uplink").unwrap(),
            },
            Role::Wire => across(&self.bed, 1, 0),
        }
    }

    /// From a pod to the outsider.
    fn outward(&self, pod: &str) -> Way {
        match self.bed.role {
            Role::Routed | Role::Node | Role::Bridge => {
                let member = self.bed.member(pod).unwrap();
                Way {
                    from: Tap::open(&member.ns, "eth0").unwrap(),
                    to: Tap::open(&self.bed.external.ns, "eth0").unwrap(),
                    next: mac_of(&self.bed.gateway, self.gateway_port(member)).unwrap(),
                }
            }
            Role::Wire => across(&self.bed, 0, 1),
        }
    }

    /// The interface of the gateway that a pod sends to.
    fn gateway_port<'a>(&self, member: &'a Member) -> &'a str {
        match self.bed.role {
            Role::Bridge => BRIDGE,
            _ => &member.port,
        }
    }

    /// Frames dropped for a reason since the start. On a node, the programs have a word of their own for what pods may not send.
    fn dropped(&self, reason: &str) -> u64 {
        let reason = match (self.bed.role, reason) {
            (Role::Node | Role::Bridge, "encapsulation") => "pod-encapsulated",
            (Role::Node | Role::Bridge, "source-routed") => "pod-source-route",
            _ => reason,
        };
        let status = self.firewall.status().unwrap();
        let drops = &status["dataplane"]["frames"]["drops"];
        drops[reason]
            .as_u64()
            .unwrap_or_else(|| find(&status, reason).unwrap_or(0))
    }
}

/// The number under a key, wherever it stands.
fn find(value: &Value, key: &str) -> Option<u64> {
    match value {
        Value::Object(map) => map.iter().find_map(|(name, value)| {
            if name == key {
                value.as_u64()
            } else {
                find(value, key)
            }
        }),
        Value::Array(list) => list.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

fn across(bed: &Bed, from: usize, to: usize) -> Way {
    let [from, to] = [from, to].map(|router| Tap::open(&bed.routers[router], "wire").unwrap());
    Way {
        next: to.mac(),
        from,
        to,
    }
}

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;

/// Both families, a port of its own for each attack, so that no flow answers for another.
fn families() -> [(bool, u16); 2] {
    [(false, 20_000), (true, 30_000)]
}

fn a_stranger_makes_the_reply_flow(role: Role) {
    let scene = Scene::new(role, "");
    let (way, out) = (scene.inward("shop/web"), scene.outward("shop/web"));
    for (v6, own) in families() {
        let [web, outsider] = ["shop/web", "external"].map(|name| scene.address(name, v6));
        let (forged, real) = (way.template(web, outsider), way.template(outsider, web));
        // A flow of the pod's own, for what may pass.
        let asks = out.template(web, outsider).udp(own + 1, QUIET, b"the pod asks");
        out.all_pass(&[("the pod asks", asks)]);
        // What the pod may say, said by the outsider, and then the answers.
        for frame in [
            forged.tcp(80, own, SYN, b""),
            forged.udp(53, own, b""),
            forged.ip(132, &[0, 80, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 4]),
            forged.echo(own, true),
        ] {
            way.from.send(&frame).unwrap();
        }
        way.only_the_last_passes(
            &[
                ("syn answers", real.tcp(own, 80, SYN, b"syn answers")),
                (
                    "syn-ack answers",
                    real.tcp(own, 80, SYN | ACK, b"syn-ack answers"),
                ),
                ("data answers", real.tcp(own, 80, ACK, b"data answers")),
                ("data by UDP answers", real.udp(own, 53, b"data by UDP answers")),
            ],
            real.udp(QUIET, own + 1, b"answers the pod"),
            "answers the pod",
        );
    }
}

#[test]
fn a_stranger_does_not_make_the_reply_flow_himself_on_a_router() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    a_stranger_makes_the_reply_flow(Role::Routed);
}

#[test]
fn a_stranger_does_not_make_the_reply_flow_himself_on_a_wire() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    a_stranger_makes_the_reply_flow(Role::Wire);
}

fn a_pod_sends_errors_and_tunnels(role: Role) {
    let scene = Scene::new(role, "");
    let (inward, outward) = (scene.inward("shop/client"), scene.outward("shop/box"));
    let speaker = scene.outward("shop/client");
    for (v6, own) in families() {
        let [boxed, client, outsider] =
            ["shop/box", "shop/client", "external"].map(|name| scene.address(name, v6));
        // The outsider's own flow with another pod, for the pod that may send nothing to quote.
        let text = format!("their datagram from {own}");
        let theirs = inward.template(outsider, client).udp(own, QUIET, text.as_bytes());
        inward.all_pass(&[(&text, theirs.clone())]);
        let unreachable = if v6 { 1 } else { 3 };
        let quote = |text: &str, length: usize| {
            let mut quote = theirs[14..].to_vec();
            quote.extend_from_slice(text.as_bytes());
            quote.resize(quote.len().max(length), b'.');
            quote
        };
        let error = |way: &Way, from, text: &str, length| {
            way.template(from, outsider)
                .icmp(unreachable, 0, [0; 4], &quote(text, length))
        };
        outward.only_passes(
            &[
                (
                    "error of another end",
                    error(&outward, boxed, "error of another end", 0),
                ),
                (
                    "plain data",
                    outward.template(boxed, outsider).udp(own, QUIET, b"plain data"),
                ),
                (
                    "answer to nothing",
                    outward
                        .template(boxed, outsider)
                        .tcp(22, own, ACK, b"answer to nothing"),
                ),
            ],
            (&speaker, error(&speaker, client, "error of the end itself", 0)),
            "error of the end itself",
        );
        // With a datagram behind it, not even of the end itself.
        speaker.only_the_last_passes(
            &[("long error", error(&speaker, client, "long error", 1400))],
            speaker.template(client, outsider).udp(own, QUIET, b"allowed"),
            "allowed",
        );
        // A pod that may talk to everybody, into tunnels, and past the destination that was judged.
        let out = speaker.template(client, outsider);
        let inner = |text: &str| [&theirs[14..], text.as_bytes()].concat();
        let mut routed = out.clone();
        if v6 {
            routed.extensions = vec![(43, vec![4, 1, 0, 0, 0, 0])];
        } else {
            routed.options = vec![131, 7, 4, 192, 0, 2, 77, 0];
        }
        let before = scene.dropped("encapsulation");
        let mut attacks: Vec<(String, Vec<u8>)> = [4, 41, 47, 97, 115, 137]
            .map(|protocol| {
                let text = format!("in protocol {protocol}.");
                (text.clone(), out.ip(protocol, &inner(&text)))
            })
            .into();
        attacks.extend([4789, 8472, 6081, 8285].map(|port| {
            let text = format!("in port {port}.");
            (text.clone(), out.udp(own, port, &inner(&text)))
        }));
        attacks.push((
            "source routed".to_owned(),
            routed.udp(own, QUIET, b"source routed"),
        ));
        let attacks: Vec<(&str, Vec<u8>)> = attacks
            .iter()
            .map(|(text, frame)| (text.as_str(), frame.clone()))
            .collect();
        speaker.only_the_last_passes(&attacks, out.udp(own, QUIET, b"allowed, too"), "allowed, too");
        assert_eq!(scene.dropped("encapsulation"), before + 10);
    }
    assert_eq!(scene.dropped("source-routed"), 2);
}

#[test]
fn errors_tunnels_and_source_routes_are_no_way_out_on_a_router() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    a_pod_sends_errors_and_tunnels(Role::Routed);
}

#[test]
fn errors_tunnels_and_source_routes_are_no_way_out_on_a_wire() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    a_pod_sends_errors_and_tunnels(Role::Wire);
}

/// Addresses of this machine and of its pods, from where they are not.
fn a_source_elsewhere(role: Role) {
    let scene = Scene::new(role, "");
    for (v6, own) in families() {
        let [web, boxed, client, outsider, gateway] =
            ["shop/web", "shop/box", "shop/client", "external", "gateway"]
                .map(|name| scene.address(name, v6));
        let way = scene.inward("shop/client");
        way.only_the_last_passes(
            &[
                ("as a pod", way.template(web, client).udp(own, QUIET, b"as a pod")),
                (
                    "as the gateway",
                    way.template(gateway, client).udp(own, QUIET, b"as the gateway"),
                ),
                (
                    "as itself",
                    way.template(client, client).udp(own, QUIET, b"as itself"),
                ),
            ],
            way.template(outsider, client).udp(own, QUIET, b"as the outsider"),
            "as the outsider",
        );
        let way = scene.outward("shop/client");
        way.only_the_last_passes(
            &[
                (
                    "as another pod",
                    way.template(boxed, outsider).udp(own, QUIET, b"as another pod"),
                ),
                (
                    "as the gateway",
                    way.template(gateway, outsider).udp(own, QUIET, b"as the gateway"),
                ),
            ],
            way.template(client, outsider).udp(own, QUIET, b"as the pod"),
            "as the pod",
        );
    }
}

#[test]
fn a_source_has_its_place_on_a_router() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    a_source_elsewhere(Role::Routed);
}

/// A failsafe rule lets connections begin; its port is not a way out of a pod that may send nothing.
fn a_failsafe_rule_by_its_source_port(role: Role) {
    let more = "failsafe:\n  allow:\n    - {from: [192.0.2.0/24, \"2001:db8::/64\"], to: podCIDRs, protocol: TCP, ports: [22]}\n";
    let scene = Scene::new(role, more);
    let (inward, outward) = (scene.inward("shop/box"), scene.outward("shop/box"));
    for (v6, own) in families() {
        let [boxed, outsider] = ["shop/box", "external"].map(|name| scene.address(name, v6));
        let (forth, back) = (
            inward.template(outsider, boxed),
            outward.template(boxed, outsider),
        );
        inward.all_pass(&[("managed", forth.tcp(own, 22, SYN, b"managed"))]);
        let attacks: Vec<(&str, Vec<u8>)> = vec![
            ("from port 22", back.tcp(22, own + 1, SYN, b"from port 22")),
            (
                "data from port 22",
                back.tcp(22, own + 2, ACK, b"data from port 22"),
            ),
        ];
        outward.only_the_last_passes(&attacks, back.tcp(22, own, SYN | ACK, b"answer"), "answer");
    }
}

#[test]
fn a_failsafe_rule_is_no_way_out_by_its_source_port() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    a_failsafe_rule_by_its_source_port(Role::Routed);
}

/// Two who agree on it, on both sides of a wire, past a pod that may send nothing.
#[test]
fn what_no_policy_speaks_about_carries_nothing_across_a_wire() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    let scene = Scene::new(Role::Wire, "");
    for inward in [false, true] {
        // One after the other: what one sends, the other would see go out.
        let way = if inward {
            scene.inward("shop/box")
        } else {
            scene.outward("shop/box")
        };
        let (own, next) = (way.from.mac(), way.next);
        let frame = |to: [u8; 6], kind: u16, body: &[u8]| {
            let mut frame = [&to[..], &own, &kind.to_be_bytes(), body].concat();
            frame.resize(frame.len().max(60), 0);
            frame
        };
        let arp = |body: &[u8]| {
            [
                &[0, 1, 8, 0, 6, 4, 0, 1][..],
                &own,
                &[198, 51, 100, 1],
                &[0; 6],
                &[198, 51, 100, 2],
                body,
            ]
            .concat()
        };
        let v4 = |dst: [u8; 4], text: &str| {
            way.template(EXTERNAL.into(), Ipv4Addr::from(dst).into())
                .udp(1, 2, text.as_bytes())
        };
        let v6 = |src: &str, dst: &str| {
            let mut template = way.template(
                src.parse::<Ipv6Addr>().unwrap().into(),
                dst.parse::<Ipv6Addr>().unwrap().into(),
            );
            template.ttl = 255;
            template
        };
        let boxed = scene.address("shop/box", true).to_string();
        let mut tagged = frame(next, 0x9200, &[0, 5, 8, 0]);
        tagged.extend_from_slice(b"odd tag");
        let llc = frame(next, 40, b"\xaa\xaa\x03\0\0\0\x08\0snap");
        way.only_the_last_passes(
            &[
                ("other type", frame(next, 0x88b5, b"other type")),
                ("pppoe", frame(next, 0x8864, b"pppoe")),
                ("mpls", frame(next, 0x8847, b"mpls")),
                ("odd tag", tagged),
                ("snap", llc),
                ("lldp", frame([1, 0x80, 0xc2, 0, 0, 0xe], 0x88cc, b"lldp")),
                (
                    "arp with data",
                    frame([255; 6], 0x0806, &arp(&[&[0; 30][..], b"arp with data"].concat())),
                ),
                ("to a group", v4([239, 1, 2, 3], "to a group")),
                ("to everyone", v4([255, 255, 255, 255], "to everyone")),
                (
                    "to a v6 group",
                    v6("2001:db8::10", "ff0e::5").udp(1, 2, b"to a v6 group"),
                ),
                (
                    "solicitation",
                    v6(&boxed, "2001:db8::10").icmp(135, 0, [0; 4], b"solicitation"),
                ),
            ],
            frame([255; 6], 0x0806, &arp(b"real arp")),
            "real arp",
        );
        // Routers are on the outer side alone.
        let advertised = v6("fe80::9", "ff02::1").icmp(134, 0, [0; 4], b"advertised");
        if inward {
            way.all_pass(&[("advertised", advertised)]);
        } else {
            let after = frame([255; 6], 0x0806, &arp(b"more arp"));
            way.only_the_last_passes(&[("advertised", advertised)], after, "more arp");
        }
        way.all_pass(&[(
            "neighbour",
            v6("fe80::9", "ff02::1:ff00:1").icmp(135, 0, [0; 4], b"neighbour for me"),
        )]);
    }
}

/// An idle connection outlives resets and FINs that somebody made up.
fn forged_resets(role: Role) {
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpStream},
    };
    let scene = Scene::new(role, "conntrack: {timeouts: {tcpClosing: 1s}}\n");
    let way = scene.inward("shop/client");
    for (v6, own) in families() {
        let [client, outsider] = ["shop/client", "external"].map(|name| scene.address(name, v6));
        let external = &scene.bed.external.ns;
        let mut stream = external
            .run(|| TcpStream::connect_timeout(&SocketAddr::new(client, 80), PATIENCE))
            .unwrap()
            .unwrap();
        let port = stream.local_addr().unwrap().port();
        let states = || -> Vec<String> {
            let output = scene
                .firewall
                .ringwall(&[
                    "flows",
                    "--config",
                    scene.firewall.config.to_str().unwrap(),
                    "-o",
                    "json",
                ])
                .unwrap();
            String::from_utf8(output.stdout)
                .unwrap()
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .filter(|flow| flow["src_port"] == port)
                .filter_map(|flow| flow["state"].as_str().map(str::to_owned))
                .collect()
        };
        assert_eq!(states(), ["tcp-established"]);
        // Of the outsider; far from where its numbers are.
        for seq in [1, 0x4000_0000, 0x8000_0000, 0xc000_0000] {
            for flags in [TcpFlags::RST, TcpFlags::RST | ACK, TcpFlags::FIN | ACK] {
                let forged = way
                    .template(outsider, client)
                    .tcp_at(port, 80, flags, [seq, 1], b"forged");
                way.from.send(&forged).unwrap();
            }
        }
        way.from
            .send(&way.template(outsider, client).udp(own, QUIET, b"through"))
            .unwrap();
        seen(&way.to, &[], "through");
        assert_eq!(states(), ["tcp-established"]);
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("shop/client"), "{answer}");
    }
}

#[test]
fn a_forged_reset_does_not_end_a_connection() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    forged_resets(Role::Routed);
}

/// A host in another VLAN, or in none, sends as a pod of VLAN 10; others send to that pod there.
#[test]
fn a_pod_of_one_vlan_is_not_claimed_or_reached_in_another() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    let scene = Scene::with(Role::Wire, |options, _| {
        options.cluster = format!(
            "  places: [{{networks: [{POD_CIDR}, \"{POD_CIDR_V6}\"], interfaces: [in], vlan: 10}}]\n"
        );
    });
    let (inward, outward) = (scene.inward("shop/client"), scene.outward("shop/client"));
    let elsewhere: [(&str, &[u16]); 5] = [
        ("in no VLAN.", &[]),
        ("in VLAN 20.", &[20]),
        ("in VLAN 100, and in it 10.", &[100, 10]),
        ("in VLAN 10, and in it 100.", &[10, 100]),
        ("in VLAN 10, and in it 20.", &[10, 20]),
    ];
    for (v6, own) in families() {
        let [client, outsider] = ["shop/client", "external"].map(|name| scene.address(name, v6));
        for (way, (src, dst)) in [(&outward, (client, outsider)), (&inward, (outsider, client))] {
            let frame = |text: &str, vlans: &[u16]| {
                let mut template = way.template(src, dst);
                template.vlans = vlans.to_vec();
                template.udp(own, QUIET, text.as_bytes())
            };
            let attacks = elsewhere.map(|(text, vlans)| (text, frame(text, vlans)));
            way.only_the_last_passes(&attacks, frame("where it lives", &[10]), "where it lives");
        }
    }
    assert_eq!(scene.dropped("spoofed-source"), 10);
    assert_eq!(scene.dropped("misplaced-destination"), 10);
}

/// The Ethernet address of no station of the bed.
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 0x66];

/// A compromised pod of another node sends as a pod, and another station says to be that pod's node.
#[test]
fn a_pod_is_believed_only_from_its_node_on_a_wire_where_that_is_asked() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    let scene = Scene::with(Role::Wire, |options, world| {
        options.more = "antiSpoofing: strict\n".to_owned();
        // The pods' router is their node.
        let addresses = [IpAddr::from([198, 51, 100, 1]), "2001:db8:1::1".parse().unwrap()];
        world.nodes.insert("inner".to_owned(), addresses.into());
        for pod in world.pods.values_mut() {
            pod.node = "inner".to_owned();
        }
    });
    // The node is not known yet; it is asked, and its pods' packets pass.
    for v6 in [false, true] {
        let to = scene.address("external", v6);
        wait_for_answer(&scene.bed, "shop/client", to, Service::Udp(53), PATIENCE * 3).unwrap();
    }
    assert!(scene.dropped("neighbour-unresolved") >= 1);
    let outward = scene.outward("shop/client");
    let claim = {
        let mut claim = [
            &[255; 6][..],
            &STRANGER,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &STRANGER,
        ]
        .concat();
        claim.extend([198, 51, 100, 1, 0, 0, 0, 0, 0, 0, 198, 51, 100, 2]);
        claim
    };
    for (v6, own) in families() {
        let [client, outsider] = ["shop/client", "external"].map(|name| scene.address(name, v6));
        let real = outward.template(client, outsider);
        let mut forged = real.clone();
        forged.eth_src = STRANGER;
        let text = format!("the pod begins {own}");
        outward.all_pass(&[(&text, real.udp(own, QUIET, text.as_bytes()))]);
        let before = scene.dropped("spoofed-source");
        outward.from.send(&claim).unwrap();
        outward.only_the_last_passes(
            &[
                ("a new flow", forged.udp(own + 1, QUIET, b"a new flow")),
                ("in the pod's flow", forged.udp(own, QUIET, b"in the pod's flow")),
                ("a connection", forged.tcp(own, 80, SYN, b"a connection")),
                ("without one", forged.tcp(own, 80, ACK, b"without one")),
            ],
            real.udp(own, QUIET, b"from its node"),
            "from its node",
        );
        assert_eq!(scene.dropped("spoofed-source"), before + 5);
    }
    // The follower of what workers hear is another thread.
    let until = Instant::now() + PATIENCE;
    let alarms = loop {
        let alarms = scene.firewall.status().unwrap()["dataplane"]["alarms"].to_string();
        if alarms.contains("claims to be node inner") || Instant::now() > until {
            break alarms;
        }
    };
    assert!(
        alarms.contains("02:00:00:00:00:66 claims to be node inner"),
        "{alarms}"
    );
}

/// A pod is replaced by another one with the same address. Who talked to the first one has not talked to the second.
fn a_reused_address_is_another_pod(role: Role) {
    let scene = Scene::new(role, "");
    let (way, out) = (scene.inward("shop/web"), scene.outward("shop/web"));
    let mut world = scene.world.clone();
    for (v6, own) in families() {
        let [web, outsider] = ["shop/web", "external"].map(|name| scene.address(name, v6));
        let (asks, answers) = (out.template(web, outsider), way.template(outsider, web));
        let text = |what: &str| format!("{what} from {own}");
        out.all_pass(&[(&text("asked"), asks.udp(own, QUIET, text("asked").as_bytes()))]);
        way.all_pass(&[(
            &text("answered"),
            answers.udp(QUIET, own, text("answered").as_bytes()),
        )]);
        out.all_pass(&[("other asked", asks.udp(own + 1, QUIET, b"other asked"))]);
        let mut other = world
            .pods
            .remove(if v6 { "shop/web2" } else { "shop/web" })
            .unwrap();
        other.name.push('2');
        world.pods.insert(format!("shop/{}", other.name), other);
        world.apply(&scene.firewall).unwrap();
        let late = text("late");
        // By now the flows that the first one began have left the workers' table, and not the kernel's.
        std::thread::sleep(Duration::from_secs(3));
        out.all_pass(&[("new asked", asks.udp(own + 2, QUIET, b"new asked"))]);
        way.only_the_last_passes(
            &[
                (&late, answers.udp(QUIET, own, late.as_bytes())),
                ("other late", answers.udp(QUIET, own + 1, b"other late")),
            ],
            answers.udp(QUIET, own + 2, b"new answered"),
            "new answered",
        );
    }
}

#[test]
fn a_reused_address_does_not_inherit_flows_on_a_router() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    a_reused_address_is_another_pod(Role::Routed);
}

#[test]
fn a_reused_address_does_not_inherit_flows_on_a_wire() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    a_reused_address_is_another_pod(Role::Wire);
}

/// TCP states of flows with this source port.
fn states(scene: &Scene, port: u16) -> Vec<String> {
    let output = scene
        .firewall
        .ringwall(&[
            "flows",
            "--config",
            scene.firewall.config.to_str().unwrap(),
            "-o",
            "json",
            "--limit",
            "0",
        ])
        .unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|flow| flow["src_port"] == port)
        .filter_map(|flow| flow["state"].as_str().map(str::to_owned))
        .collect()
}

/// A connection to the server's echo, which waits for more as long as one likes.
fn echo(from: &Netns, to: IpAddr) -> std::net::TcpStream {
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpStream},
    };
    let to = SocketAddr::new(to, 80);
    let mut stream = from
        .run(|| TcpStream::connect_timeout(&to, PATIENCE))
        .unwrap()
        .unwrap();
    stream.write_all(b"GET /echo HTTP/1.0\r\n\r\n").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    stream
}

/// Resets by guess, with data before each that would make its number one that was sent; and after a restart of the dataplane.
#[test]
fn guessing_ends_no_connection() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    let scene = Scene::new(Role::Routed, "");
    let way = scene.inward("shop/client");
    for (v6, own) in families() {
        let [client, outsider] = ["shop/client", "external"].map(|name| scene.address(name, v6));
        let stream = echo(&scene.bed.external.ns, client);
        let port = stream.local_addr().unwrap().port();
        let forged = way.template(outsider, client);
        for flags in [ACK, TcpFlags::RST] {
            for guess in (0..=u32::MAX).step_by(1 << 16) {
                let (seq, data) = match flags {
                    ACK => (guess, &b"x"[..]),
                    _ => (guess.wrapping_add(1), &b""[..]),
                };
                way.from
                    .send(&forged.tcp_at(port, 80, flags, [seq, 0x9000_0000], data))
                    .unwrap();
                // Slowly enough that none is lost in a ring.
                if guess % (1 << 20) == 0 {
                    let text = format!("guessed {flags} {guess}.");
                    way.all_pass(&[(&text, forged.udp(own, 53, text.as_bytes()))]);
                }
            }
        }
        way.all_pass(&[("through", forged.udp(own, 53, b"through"))]);
        assert_eq!(states(&scene, port), ["tcp-established"]);
    }
}

#[test]
fn a_restart_makes_no_forged_reset_believable() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    let scene = Scene::new(Role::Routed, "");
    let way = scene.inward("shop/client");
    let external = &scene.bed.external.ns;
    let streams = families().map(|(v6, _)| echo(external, scene.address("shop/client", v6)));
    let old = scene
        .firewall
        .signal("dataplane", ringwall_testbed::appliance::Signal::SIGKILL)
        .unwrap();
    scene
        .firewall
        .wait_until("another dataplane decides", |status| {
            status["dataplane"]["pid"]
                .as_i64()
                .is_some_and(|pid| pid != i64::from(old.as_raw()))
                && status["dataplane"]["snapshot"]["generation"].as_u64() > Some(0)
        })
        .unwrap();
    for ((v6, own), stream) in families().into_iter().zip(&streams) {
        let [client, outsider] = ["shop/client", "external"].map(|name| scene.address(name, v6));
        let port = stream.local_addr().unwrap().port();
        let forged = way.template(outsider, client);
        way.all_pass(&[("before", forged.udp(own, QUIET, b"before"))]);
        way.from
            .send(&forged.tcp_at(port, 80, ACK, [0x7000_0000, 7], b"x"))
            .unwrap();
        way.from
            .send(&forged.tcp_at(port, 80, TcpFlags::RST, [0x7000_0001, 0], b""))
            .unwrap();
        way.all_pass(&[("through", forged.udp(own + 1, QUIET, b"through"))]);
        assert_eq!(states(&scene, port), ["tcp-established"]);
    }
}

/// Tunnels behind more headers than are walked, and associations of SCTP that the other end begins.
fn hidden_tunnels_and_associations(role: Role) {
    let scene = Scene::new(role, "");
    let (out, way) = (scene.outward("shop/client"), scene.inward("shop/web"));
    let pod = scene.outward("shop/web");
    let [client, outsider] = ["shop/client", "external"].map(|name| scene.address(name, true));
    let mut hidden = out.template(client, outsider);
    hidden.extensions = vec![(60, vec![1, 4, 0, 0, 0, 0]); 9];
    out.only_the_last_passes(
        &[
            ("in IPv6.", hidden.ip(41, b"in IPv6.")),
            ("in VXLAN.", hidden.udp(7, 8472, b"in VXLAN.")),
        ],
        out.template(client, outsider).udp(7, QUIET, b"allowed"),
        "allowed",
    );
    for (v6, own) in families() {
        let [web, outsider] = ["shop/web", "external"].map(|name| scene.address(name, v6));
        let sctp = |way: &Way, from, to, chunk: u8, text: &str| {
            let mut l4 = [own.to_be_bytes(), own.to_be_bytes()].concat();
            l4.extend_from_slice(&[0, 0, 0, 7, 0, 0, 0, 0, chunk, 3, 0, 20]);
            l4.extend_from_slice(text.as_bytes());
            way.template(from, to).ip(132, &l4)
        };
        pod.all_pass(&[("pod begins", sctp(&pod, web, outsider, 1, "pod begins"))]);
        way.only_the_last_passes(
            &[("other begins", sctp(&way, outsider, web, 1, "other begins"))],
            sctp(&way, outsider, web, 2, "other answers"),
            "other answers",
        );
        way.only_the_last_passes(
            &[("other begins", sctp(&way, outsider, web, 1, "other begins"))],
            sctp(&way, outsider, web, 0, "other says"),
            "other says",
        );
    }
}

#[test]
fn hidden_tunnels_and_associations_of_the_other_end_drop_on_a_router() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    hidden_tunnels_and_associations(Role::Routed);
}

#[test]
fn hidden_tunnels_and_associations_of_the_other_end_drop_on_a_wire() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    hidden_tunnels_and_associations(Role::Wire);
}

/// Frames that links need, with data in them, as pods behind a bridge can send them.
#[test]
fn frames_that_links_need_carry_nothing_else_across_a_wire() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    let scene = Scene::new(Role::Wire, "");
    for inward in [false, true] {
        let way = if inward {
            scene.inward("shop/box")
        } else {
            scene.outward("shop/box")
        };
        let own = way.from.mac();
        let frame = |to: [u8; 6], kind: u16, body: &[u8]| {
            let mut frame = [&to[..], &own, &kind.to_be_bytes(), body].concat();
            frame.resize(frame.len().max(60), 0);
            frame
        };
        let bridges = |last: u8| [1, 0x80, 0xc2, 0, 0, last];
        let v6 = |src: &str, dst: &str, ttl: u8| {
            let mut template = way.template(
                src.parse::<Ipv6Addr>().unwrap().into(),
                dst.parse::<Ipv6Addr>().unwrap().into(),
            );
            template.ttl = ttl;
            template
        };
        let long = |text: &str| [text.as_bytes(), &[0; 900]].concat();
        let solicited = "ff02::1:ff00:1";
        let mut trailed = v6("fe80::9", solicited, 255).icmp(135, 0, [0; 4], &[0xfe; 16]);
        trailed.extend_from_slice(&long("behind discovery"));
        way.only_the_last_passes(
            &[
                ("slow to all", frame([255; 6], 0x8809, b"slow to all")),
                ("slow to one", frame(way.next, 0x8809, b"slow to one")),
                (
                    "in spanning tree",
                    frame(
                        bridges(0),
                        900,
                        &[&[0x42, 0x42, 3, 0, 0, 0, 0][..], &long("in spanning tree")].concat(),
                    ),
                ),
                (
                    "not spanning tree",
                    frame(bridges(0), 40, b"\xaa\xaa\x03 not spanning tree"),
                ),
                (
                    "in solicitation",
                    v6("fe80::9", solicited, 255).icmp(135, 0, [0; 4], &long("in solicitation")),
                ),
                (
                    "in advertisement",
                    v6("fe80::9", "ff02::1", 255).icmp(136, 0, [0; 4], &long("in advertisement")),
                ),
                (
                    "for routers",
                    v6("fe80::9", "ff02::2", 255).icmp(133, 0, [0; 4], &long("for routers")),
                ),
                ("behind discovery", trailed),
                (
                    "to link-local",
                    v6("fe80::9", "fe80::7", 64).udp(7, 9, b"to link-local"),
                ),
            ],
            frame(bridges(0), 38, b"\x42\x42\x03\0\0\0\0real tree"),
            "real tree",
        );
    }
}

/// A pod says that it is many neighbours. The kernel's table of neighbours is one for all of a machine.
fn many_neighbours(role: Role) {
    let scene = Scene::new(role, "");
    let way = scene.outward("shop/box");
    let own = way.from.mac();
    let gateway6 = {
        let output = scene
            .bed
            .gateway
            .output({
                let mut command = std::process::Command::new("ip");
                command.args([
                    "-j",
                    "-6",
                    "address",
                    "show",
                    "dev",
                    &scene.bed.member("shop/box").unwrap().port,
                ]);
                command
            })
            .unwrap();
        let links: Value = serde_json::from_slice(&output.stdout).unwrap();
        links[0]["addr_info"][0]["local"]
            .as_str()
            .unwrap()
            .parse::<Ipv6Addr>()
            .unwrap()
    };
    for last in 1..=200 {
        let arp = [
            &[255; 6][..],
            &own,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &own,
            &[10, 111, 77, last],
            &[0; 6],
            &[169, 254, 1, 1],
            &[0; 18],
        ]
        .concat();
        way.from.send(&arp).unwrap();
        let from = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 7, u16::from(last));
        let mut template = way.template(from.into(), gateway6.into());
        template.ttl = 255;
        let mut body = gateway6.octets().to_vec();
        body.extend_from_slice(&[1, 1]);
        body.extend_from_slice(&own);
        way.from.send(&template.icmp(135, 0, [0; 4], &body)).unwrap();
    }
    // What is sent last has passed when others' datagrams do.
    let client = scene.outward("shop/client");
    let [from, to] = ["shop/client", "external"].map(|name| scene.address(name, false));
    let after = client.template(from, to).udp(7, QUIET, b"after them");
    client.all_pass(&[("after them", after)]);
    let output = scene
        .bed
        .gateway
        .output({
            let mut command = std::process::Command::new("ip");
            command.args([
                "neigh",
                "show",
                "dev",
                &scene.bed.member("shop/box").unwrap().port,
            ]);
            command
        })
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let made = |prefix: &str| text.lines().filter(|line| line.starts_with(prefix)).count();
    let made = made("10.111.77.") + made("fe80::7:");
    assert!((1..=60).contains(&made), "{text}");
}

#[test]
fn a_pod_does_not_fill_the_table_of_neighbours() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    many_neighbours(Role::Routed);
}

/// On a node, whose kernel forwards, everything is tried that is not about wires, VLANs, and the sequence numbers that the kernel's
/// connection tracking looks at there.
fn on_nodes(attack: fn(Role)) {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    for role in [Role::Node, Role::Bridge] {
        attack(role);
    }
}

#[test]
fn a_stranger_does_not_make_the_reply_flow_himself_on_a_node() {
    on_nodes(a_stranger_makes_the_reply_flow);
}

#[test]
fn errors_tunnels_and_source_routes_are_no_way_out_on_a_node() {
    on_nodes(a_pod_sends_errors_and_tunnels);
}

#[test]
fn a_source_has_its_place_on_a_node() {
    on_nodes(a_source_elsewhere);
}

#[test]
fn a_failsafe_rule_is_no_way_out_by_its_source_port_on_a_node() {
    on_nodes(a_failsafe_rule_by_its_source_port);
}

#[test]
fn a_forged_reset_does_not_end_a_connection_on_a_node() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    forged_resets(Role::Node);
}

#[test]
fn a_reused_address_does_not_inherit_flows_on_a_node() {
    on_nodes(a_reused_address_is_another_pod);
}

#[test]
fn hidden_tunnels_and_associations_of_the_other_end_drop_on_a_node() {
    on_nodes(hidden_tunnels_and_associations);
}

#[test]
fn a_pod_does_not_fill_the_table_of_neighbours_of_a_node() {
    let Some(_alone) = runs_here("attacks") else {
        return;
    };
    many_neighbours(Role::Node);
}
