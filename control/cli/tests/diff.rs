//! `ringwall diff` as others script on it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod ran;

use std::{fs, path::Path};

use ran::{Ran, ringwall};
use serde_json::{Value, json};
use tempfile::TempDir;

const SHOP: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.1.0.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.1.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.1.0.3}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.1.0.2}]}
";

fn database(from: &str, port: u16) -> String {
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: db, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: db}}}}
  ingress:
  - from: [{from}]
    ports: [{{port: {port}}}]
"
    )
}

const WEB: &str = "{podSelector: {matchLabels: {app: web}}}";

/// Two folders; the second also has what `more` says.
fn folders(before: &str, after: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, policies) in [("from", before), ("to", after)] {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("shop.yaml"), SHOP).unwrap();
        fs::write(folder.join("policies.yaml"), policies).unwrap();
    }
    dir
}

fn diff(dir: &Path, more: &[&str]) -> Ran {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (from, to) = (path("from"), path("to"));
    let mut args = vec!["diff", "--from", &from, "--to", &to];
    args.extend(more);
    ringwall(&args)
}

#[test]
fn a_moved_port_is_two_regions() {
    let dir = folders(&database(WEB, 5432), &database(WEB, 5433));
    let ran = diff(dir.path(), &["-o", "json"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let region = |port: u16, from: &str, to: &str| {
        json!({
            "src": {"pods": ["shop/web"], "cidrs": []},
            "dst": {"pods": ["shop/db"], "cidrs": []},
            "protocol": "TCP", "ports": [[port, port]], "from": from, "to": to,
            "policies": ["shop/db"],
        })
    };
    assert_eq!(
        ran.lines(),
        [region(5433, "deny", "allow"), region(5432, "allow", "deny")]
    );
    let status = |more: &[&str]| diff(dir.path(), more).status;
    assert_eq!(status(&["--exit-code"]), 1);
    let same = folders(&database(WEB, 5432), &database(WEB, 5432));
    let ran = diff(same.path(), &["--exit-code", "-o", "json"]);
    assert_eq!((ran.status, ran.out.as_str()), (0, ""));
}

#[test]
fn a_first_policy_closes_all_but_the_nodes_probes_and_itself() {
    let dir = folders("", &database(WEB, 5432));
    let lines = diff(dir.path(), &["-o", "json"]).lines();
    let others: Vec<&Value> = lines.iter().filter(|line| line["protocol"] == "other").collect();
    let [other] = others.as_slice() else {
        panic!("{lines:#?}");
    };
    assert_eq!(other["src"]["pods"], json!(["shop/api", "shop/web"]));
    assert_eq!(other["dst"], json!({"pods": ["shop/db"], "cidrs": []}));
    assert_eq!(other["ports"], Value::Null);
    let cidrs = other["src"]["cidrs"].as_array().unwrap();
    let covers = |address: &str| {
        let address: std::net::IpAddr = address.parse().unwrap();
        let nets = cidrs
            .iter()
            .map(|net| net.as_str().unwrap().parse::<ipnet::IpNet>().unwrap());
        nets.filter(|net| net.contains(&address)).count()
    };
    // The hosting node still passes; an unknown address of the pod network never did.
    let wanted = [
        ("192.168.0.1", 0),
        ("10.1.0.77", 0),
        ("192.168.0.2", 1),
        ("10.1.1.0", 1),
        ("8.8.8.8", 1),
    ];
    for (address, count) in wanted {
        assert_eq!(covers(address), count, "{address} in {cidrs:?}");
    }
}

#[test]
fn endpoints_of_one_side_are_no_changes_of_a_verdict() {
    let dir = folders(&database(WEB, 5432), &database(WEB, 5432));
    let more =
        "{apiVersion: v1, kind: Pod, metadata: {name: new, namespace: shop}, status: {podIP: 10.1.0.9}}";
    fs::write(dir.path().join("to/new.yaml"), more).unwrap();
    let ran = diff(dir.path(), &["-o", "json", "--exit-code"]);
    assert_eq!(ran.lines(), [json!({"endpoint": "shop/new", "change": "added"})]);
    assert_eq!(ran.status, 1);
    let human = diff(dir.path(), &[]).out;
    assert!(human.contains("+ shop/new is added"), "{human}");
}

#[test]
fn families_of_pods_that_have_both_are_told_apart_where_they_differ() {
    let dir = TempDir::new().unwrap();
    let pods = "
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: x}, status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: x, labels: {app: b}}, status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}}
";
    let policy = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: b, namespace: x}
spec:
  podSelector: {matchLabels: {app: b}}
  ingress:
  - {from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80}]}
  - {from: [{ipBlock: {cidr: 'fd00::/8'}}], ports: [{port: 81}]}
";
    for name in ["from", "to"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("pods.yaml"), pods).unwrap();
    }
    fs::write(dir.path().join("to/policy.yaml"), policy).unwrap();
    let lines = diff(dir.path(), &["-o", "json"]).lines();
    let between: Vec<(Value, Value, Value)> = lines
        .iter()
        .filter(|line| line["src"]["pods"] == json!(["x/a"]))
        .map(|line| {
            (
                line["protocol"].clone(),
                line["family"].clone(),
                line["ports"].clone(),
            )
        })
        .collect();
    for wanted in [
        (json!("TCP"), json!("IPv4"), json!([[0, 79], [81, 65535]])),
        (json!("TCP"), json!("IPv6"), json!([[0, 80], [82, 65535]])),
        (json!("UDP"), Value::Null, json!([[0, 65535]])),
        (json!("other"), Value::Null, Value::Null),
    ] {
        assert!(between.contains(&wanted), "{wanted:?}: {between:#?}");
    }
    assert_eq!(
        between
            .iter()
            .filter(|(protocol, _, _)| protocol == "TCP")
            .count(),
        2,
        "{between:#?}"
    );
}

#[test]
fn people_see_which_policy_did_it() {
    let dir = folders("", &database("{}", 5432).replace("from: [{}]", "from: []"));
    insta::assert_snapshot!(diff(dir.path(), &[]).out);
}

#[test]
fn recorded_flows_that_change_are_counted() {
    let dir = folders(
        &database(WEB, 5432),
        &database("{podSelector: {matchLabels: {app: api}}}", 5432),
    );
    let flows = dir.path().join("flows");
    let text = r#"
{"src":"shop/web","dst":"shop/db","protocol":"TCP","dst_port":5432,"src_port":4000}
{"src":"shop/web","dst":"shop/db","protocol":"TCP","dst_port":5432,"src_port":4001}
{"src":"10.1.0.3","dst":"10.1.0.2","protocol":"TCP","dst_port":5432}
{"src":"8.8.8.8","dst":"shop/db","protocol":"ICMP","icmp_type":8}
"#;
    fs::write(&flows, text).unwrap();
    let flows = flows.to_str().unwrap().to_owned();
    let ran = diff(dir.path(), &["--flows", &flows, "-o", "json", "--exit-code"]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    let wanted = [
        json!({"src": "shop/web", "dst": "shop/db", "protocol": "TCP", "dst_port": 5432, "flows": 2,
            "from": "allow", "to": "deny", "policies": ["shop/db"]}),
        json!({"src": "10.1.0.3", "dst": "10.1.0.2", "protocol": "TCP", "dst_port": 5432, "src_pod": "shop/api",
            "dst_pod": "shop/db", "flows": 1, "from": "deny", "to": "allow", "policies": ["shop/db"]}),
        json!({"summary": {"flows": 4, "distinct": 3, "changed": 3, "closed": 2, "opened": 1, "unmatched": 0, "errors": 0}}),
    ];
    assert_eq!(ran.lines(), wanted);

    fs::write(
        &flows,
        "{\"src\":\"shop/nobody\",\"dst\":\"shop/db\",\"protocol\":\"TCP\",\"dst_port\":1}\nrubbish\n",
    )
    .unwrap();
    let ran = diff(dir.path(), &["--flows", &flows, "-o", "json"]);
    assert_eq!(ran.status, 2);
    assert_eq!(
        ran.lines()
            .iter()
            .filter(|line| line.get("error").is_some())
            .count(),
        2,
        "{}",
        ran.out
    );
}

#[test]
fn what_cannot_be_read_is_status_2() {
    let dir = folders("", "");
    for more in [
        ["--flows", "/nonexistent"],
        ["--pcap", "/nonexistent"],
        ["--pcap", dir.path().join("from/shop.yaml").to_str().unwrap()],
    ] {
        let ran = diff(dir.path(), &more);
        assert_eq!(ran.status, 2, "{more:?}");
        assert!(ran.err.contains(more[1]), "{}", ran.err);
    }
    assert_eq!(
        ringwall(&["diff", "--from", "/nonexistent", "--to", "/nonexistent"]).status,
        2
    );
}

/// Packets of a capture, by hand.
mod packets {
    /// An IPv4 packet with its header's check sum.
    pub(crate) fn ipv4(src: [u8; 4], dst: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(src);
        packet.extend(dst);
        let length = (packet.len() + payload.len()) as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        let sum: u32 = packet
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
        packet.extend(payload);
        packet
    }

    pub(crate) fn tcp(src: u16, dst: u16, flags: u8) -> Vec<u8> {
        let mut header = vec![0; 20];
        header[..2].copy_from_slice(&src.to_be_bytes());
        header[2..4].copy_from_slice(&dst.to_be_bytes());
        header[12] = 5 << 4;
        header[13] = flags;
        header.extend([0; 100]);
        header
    }

    pub(crate) fn ethernet(packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend(packet);
        frame
    }

    /// Linux cooked, first version.
    pub(crate) fn cooked(packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 14];
        frame.extend([8, 0]);
        frame.extend(packet);
        frame
    }

    /// Linux cooked, second version.
    pub(crate) fn cooked_2(packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![8, 0];
        frame.extend([0; 18]);
        frame.extend(packet);
        frame
    }

    /// A pcap file; frames are cut at `snap` bytes.
    pub(crate) fn pcap(link: u32, snap: usize, frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        file.extend([2, 0, 4, 0]);
        file.extend([0; 8]);
        file.extend(65535_u32.to_le_bytes());
        file.extend(link.to_le_bytes());
        for frame in frames {
            let captured = frame.len().min(snap);
            file.extend([0; 8]);
            file.extend((captured as u32).to_le_bytes());
            file.extend((frame.len() as u32).to_le_bytes());
            file.extend(&frame[..captured]);
        }
        file
    }

    /// A pcapng file with one interface per link type; frames say which.
    pub(crate) fn pcapng(links: &[u16], frames: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut block = |kind: u32, body: &[u8]| {
            let padded = body.len().next_multiple_of(4);
            let length = (padded + 12) as u32;
            file.extend(kind.to_le_bytes());
            file.extend(length.to_le_bytes());
            file.extend(body);
            file.extend(vec![0; padded - body.len()]);
            file.extend(length.to_le_bytes());
        };
        let mut section = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
        section.extend([1, 0, 0, 0]);
        section.extend([0xff; 8]);
        block(0x0a0d_0d0a, &section);
        for link in links {
            let mut interface = link.to_le_bytes().to_vec();
            interface.extend([0; 6]);
            block(1, &interface);
        }
        for (interface, frame) in frames {
            let mut body = interface.to_le_bytes().to_vec();
            body.extend([0; 8]);
            body.extend((frame.len() as u32).to_le_bytes());
            body.extend((frame.len() as u32).to_le_bytes());
            body.extend(frame);
            block(6, &body);
        }
        file
    }
}

const PEER: [u8; 4] = [10, 1, 0, 1];
const DB: [u8; 4] = [10, 1, 0, 2];
const SYN: u8 = 2;
const ACK: u8 = 16;

#[test]
fn captured_flows_that_change_are_found_whichever_way_they_are_framed() {
    use packets::{cooked, cooked_2, ethernet, ipv4, pcap, pcapng, tcp};
    let dir = folders(&database(WEB, 5432), "");
    let file = dir.path().join("capture");
    let flow = |client: u16| {
        [
            // Captured late: the answer comes first, the SYN says who began.
            ipv4(DB, PEER, 6, &tcp(5433, client, SYN | ACK)),
            ipv4(PEER, DB, 6, &tcp(client, 5433, SYN)),
            ipv4(PEER, DB, 6, &tcp(client, 5433, ACK)),
        ]
    };
    let framed = |frame: fn(&[u8]) -> Vec<u8>| -> Vec<Vec<u8>> {
        flow(4000)
            .iter()
            .chain(&flow(4001))
            .map(|packet| frame(packet))
            .collect()
    };
    let ng = |links: [u16; 2], frame: fn(&[u8]) -> Vec<u8>| {
        let frames: Vec<(u32, Vec<u8>)> = framed(frame).into_iter().map(|frame| (1, frame)).collect();
        pcapng(&links, &frames)
    };
    let whole: fn(&[u8]) -> Vec<u8> = |packet| packet.to_vec();
    for (name, bytes, overhead) in [
        ("Ethernet", pcap(1, 65535, &framed(ethernet)), 14),
        ("Ethernet, headers only", pcap(1, 54, &framed(ethernet)), 14),
        ("raw", pcap(101, 65535, &framed(whole)), 0),
        ("IPv4", pcap(228, 65535, &framed(whole)), 0),
        ("cooked", pcap(113, 65535, &framed(cooked)), 16),
        ("cooked, second version", pcap(276, 65535, &framed(cooked_2)), 20),
        ("pcapng, second interface", ng([101, 1], ethernet), 14),
        ("pcapng, cooked", ng([1, 113], cooked), 16),
    ] {
        fs::write(&file, bytes).unwrap();
        let ran = diff(
            dir.path(),
            &["--pcap", file.to_str().unwrap(), "-o", "json", "--exit-code"],
        );
        assert_eq!(ran.status, 1, "{name}: {}", ran.err);
        let lines = ran.lines();
        let [flow, summary] = lines.as_slice() else {
            panic!("{name}: {lines:?}");
        };
        let wanted = json!({"src": "10.1.0.1", "dst": "10.1.0.2", "protocol": "TCP", "dst_port": 5433,
            "src_pod": "shop/web", "dst_pod": "shop/db", "flows": 2, "packets": 6, "bytes": 6 * (140 + overhead),
            "from": "deny", "to": "allow", "policies": ["shop/db"]});
        assert_eq!(*flow, wanted, "{name}");
        assert_eq!(summary["summary"]["packets"]["read"], 6, "{name}");
        assert_eq!(summary["summary"]["packets"]["truncated"], 0, "{name}");
    }
}

#[test]
fn what_a_capture_does_not_show_is_counted() {
    use packets::{ethernet, ipv4, pcap, tcp};
    let dir = folders("", &database(WEB, 5432));
    let file = dir.path().join("capture");
    let mut later = ipv4(PEER, DB, 6, &tcp(1, 2, 0));
    later[6..8].copy_from_slice(&10_u16.to_be_bytes());
    later[10..12].fill(0);
    let sum: u32 = later[..20]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    later[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    let mut wrong = ethernet(&ipv4(PEER, DB, 6, &tcp(1, 2, 0)));
    wrong[24] ^= 1;
    let mut arp = vec![0xff; 12];
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend([0; 20]);
    let mut bytes = pcap(1, 65535, &[ethernet(&later), wrong, arp]);
    // Cut within the ports, then within the file.
    let short = pcap(1, 36, &[ethernet(&ipv4(PEER, DB, 6, &tcp(1, 2, 0)))]);
    bytes.extend(&short[24..]);
    bytes.extend([0; 7]);
    fs::write(&file, bytes).unwrap();
    let ran = diff(
        dir.path(),
        &["--pcap", file.to_str().unwrap(), "-o", "json", "--exit-code"],
    );
    assert_eq!(ran.status, 0, "{}", ran.err);
    let wanted = json!({"read": 4, "truncated": 1, "unparsable": 1, "not_subject": 1, "later_fragments": 1,
        "icmp_errors": 0, "cut_short": true});
    assert_eq!(ran.lines()[0]["summary"]["packets"], wanted);

    fs::write(&file, pcap(195, 65535, &[vec![0; 40]])).unwrap();
    let ran = diff(dir.path(), &["--pcap", file.to_str().unwrap()]);
    assert_eq!(ran.status, 2);
    assert!(ran.err.contains("link type 195"), "{}", ran.err);
}

#[test]
fn why_a_folder_cannot_be_read_is_said_once() {
    let dir = folders("", "");
    let missing = dir.path().join("missing");
    let (missing, there) = (missing.to_str().unwrap(), dir.path().join("to"));
    let args = ["diff", "--from", missing, "--to", there.to_str().unwrap()];
    let wanted = format!("cannot read {missing}: No such file or directory (os error 2)");
    let ran = ringwall(&args);
    assert_eq!((ran.status, ran.err), (2, format!("ringwall: {wanted}\n")));
    let ran = ringwall(&[&args[..], &["-o", "json"]].concat());
    assert_eq!((ran.status, ran.lines()), (2, vec![json!({ "error": wanted })]));
}

/// So many namespaces that isolate their only pod that each pair of them is a region.
fn isolating(namespaces: usize) -> (String, String) {
    let (mut pods, mut policies) = (String::new(), String::new());
    for number in 0..namespaces {
        pods.push_str(&format!(
            "
---
apiVersion: v1
kind: Pod
metadata: {{name: pod, namespace: n{number:02}}}
spec: {{nodeName: n1}}
status: {{podIPs: [{{ip: 10.1.0.{}}}]}}
",
            number + 10
        ));
        policies.push_str(&format!(
            "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: deny, namespace: n{number:02}}}
spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress]}}
"
        ));
    }
    (pods, policies)
}

#[test]
fn what_is_too_long_to_read_is_summed_up_for_people() {
    let (pods, policies) = isolating(10);
    let dir = folders(&format!("{pods}{policies}"), &pods);
    let ran = diff(dir.path(), &[]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    for wanted in [
        "closed       opened\n",
        "           0           90  90 more pairs of namespaces\n",
        "           0            3  n00 -> shop\n",
        "Policies: 10 removed.\n",
        "0 regions closed, 440 regions opened.\n",
        "All of them: --all, or -o json.\n",
    ] {
        assert!(ran.out.contains(wanted), "no {wanted:?} in:\n{}", ran.out);
    }
    assert!(!ran.out.contains("n00/pod"), "{}", ran.out);
    assert!(ran.out.lines().count() < 60, "{}", ran.out);
    // All of it where it is asked for, and always for programs.
    let all = diff(dir.path(), &["--all"]);
    assert!(
        all.out.contains("deny  -> allow  n00/pod  ->  n01/pod  all"),
        "{}",
        all.out
    );
    let lines = diff(dir.path(), &["-o", "json"]).lines();
    assert!(lines.len() > 300, "{} lines", lines.len());
}

const GLOBAL_POLICY: &str = "
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: x}
spec: {order: 1, ingress: [{action: ACTION}]}
";

const TOWARDS_NAMES: &str = "
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: x}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  egress: [{action: Accept, to: [{domainNames: [ZONE.example.org]}]}]
";

#[test]
fn peers_that_are_not_evaluated_count_as_changes_where_they_differ() {
    let folder = |zone: &str| {
        let dir = TempDir::new().unwrap();
        let text = SHOP.to_owned() + &TOWARDS_NAMES.replace("ZONE", zone);
        fs::write(dir.path().join("a.yaml"), text).unwrap();
        dir
    };
    let (from, same, other) = (folder("a"), folder("a"), folder("b"));
    for (to, differs) in [(&same, false), (&other, true)] {
        let [from, to] = [&from, to].map(|dir| dir.path().to_str().unwrap());
        let ran = ringwall(&["diff", "--from", from, "--to", to, "--exit-code", "-o", "json"]);
        let wanted = json!({
            "incomplete": ["domainNames peers of ClusterNetworkPolicy.policy.networking.k8s.io"],
            "incomplete_differs": differs,
        });
        assert_eq!((ran.status, ran.lines()), (i32::from(differs), vec![wanted]));
    }
}

/// What is not evaluated is no proof that nothing changes.
#[test]
fn policies_that_are_not_evaluated_are_told_and_count_as_changes_where_they_differ() {
    let folder = |action: &str| {
        let dir = TempDir::new().unwrap();
        let text = SHOP.to_owned() + &GLOBAL_POLICY.replace("ACTION", action);
        fs::write(dir.path().join("a.yaml"), text).unwrap();
        dir
    };
    let (from, to) = (folder("Allow"), folder("Deny"));
    let diff = |to: &TempDir, more: &[&str]| {
        let [from, to] = [&from, to].map(|dir| dir.path().to_str().unwrap());
        ringwall(&[&["diff", "--from", from, "--to", to, "--exit-code"], more].concat())
    };
    for (to, differs) in [(&to, true), (&from, false)] {
        let ran = diff(to, &["-o", "json"]);
        let wanted = json!({
            "incomplete": ["CiliumClusterwideNetworkPolicy.cilium.io"],
            "incomplete_differs": differs,
        });
        assert_eq!((ran.status, ran.lines()), (i32::from(differs), vec![wanted]));
        let ran = diff(to, &[]);
        assert_eq!(ran.status, i32::from(differs));
        assert!(ran.out.contains("Incomplete: "), "{}", ran.out);
        assert_eq!(
            ran.out.contains("not the same on both sides"),
            differs,
            "{}",
            ran.out
        );
    }
}

/// What is enforced, a policy that an annotation stages, and policies that kinds of Calico stage, one of which takes the
/// first away.
fn staging() -> TempDir {
    let dir = TempDir::new().unwrap();
    let staged = database(WEB, 5432).replace(
        "{name: db, namespace: shop}",
        "{name: closed, namespace: shop, annotations: {ringwall.io/mode: staged}}",
    );
    let kinds = "
---
apiVersion: projectcalico.org/v3
kind: StagedKubernetesNetworkPolicy
metadata: {name: open, namespace: shop}
spec: {stagedAction: Delete}
---
apiVersion: projectcalico.org/v3
kind: StagedGlobalNetworkPolicy
metadata: {name: no-web}
spec:
  tier: kube-admin
  order: 1
  selector: app == 'db'
  types: [Ingress]
  ingress:
  - {action: Deny, source: {selector: app == 'web'}}
";
    let open = database("{podSelector: {}}", 5432).replace("name: db", "name: open");
    fs::write(
        dir.path().join("all.yaml"),
        format!("{SHOP}---{staged}---{open}{kinds}"),
    )
    .unwrap();
    dir
}

/// What comes of TCP 5432 to the database.
fn verdict(folder: &str, from: &str) -> String {
    let flow = json!({"src": from, "dst": "shop/db", "protocol": "TCP", "dst_port": 5432});
    let args = ["query", "--manifests", folder, "--flows", "-", "-o", "json"];
    let ran = ran::ringwall_reading(&args, &flow.to_string());
    assert_eq!(ran.status, 0, "{}", ran.err);
    ran.lines()[0]["verdict"].as_str().unwrap().to_owned()
}

#[test]
fn staged_policies_change_nothing_and_what_they_would_change_is_shown() {
    let dir = staging();
    let folder = dir.path().to_str().unwrap();
    let query = |from: &str| verdict(folder, from);
    // Nothing of them is in force.
    assert_eq!(
        (query("shop/web"), query("shop/api")),
        ("allow".to_owned(), "allow".to_owned())
    );

    let diff = |more: &[&str]| {
        let mut args = vec!["diff", "--staged", "--manifests", folder, "-o", "json"];
        args.extend(more);
        ringwall(&args)
    };
    // All together: `closed` allows web alone, and the global one denies it.
    let ran = diff(&["--exit-code"]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    let lines = ran.lines();
    let of = |name: &str| lines.iter().find(|line| line["staged"] == name).unwrap().clone();
    assert_eq!(of("no-web")["closed"], 1);
    assert_eq!(
        (
            of("shop/open")["action"].clone(),
            of("shop/closed")["opened"].clone()
        ),
        (json!("delete"), json!(0))
    );
    let closes = |from: &str| {
        lines.iter().any(|line| {
            let pods = line["src"]["pods"].as_array();
            line["to"] == "deny" && pods.is_some_and(|pods| pods.contains(&json!(from)))
        })
    };
    assert!(closes("shop/web") && closes("shop/api"), "{lines:#?}");

    // One alone: `open` still lets everybody in.
    let ran = diff(&["--policy", "shop/closed", "--exit-code"]);
    assert_eq!((ran.status, ran.lines().len()), (0, 1), "{} {}", ran.out, ran.err);
    let ran = diff(&["--policy", "no-web"]);
    assert_eq!(ran.lines().len(), 2, "{}", ran.out);
    let ran = diff(&["--policy", "shop/none"]);
    assert_eq!(ran.status, 2);
    let said = format!("{}{}", ran.out, ran.err);
    assert!(said.contains("there are: "), "{said}");
    // A sentence for people, and no second folder.
    let ran = ringwall(&["diff", "--staged", "--manifests", folder]);
    assert!(
        ran.out
            .contains("StagedGlobalNetworkPolicy no-web (set): would open 0 pairs and close 1 pair"),
        "{}",
        ran.out
    );
    assert_eq!(
        ringwall(&["diff", "--staged", "--from", folder, "--to", folder]).status,
        2
    );
    assert_eq!(ringwall(&["diff", "--from", folder]).status, 2);
}

#[test]
fn a_mode_that_does_not_exist_stages_nothing() {
    let dir = TempDir::new().unwrap();
    let policy = database(WEB, 5432).replace(
        "{name: db, namespace: shop}",
        "{name: db, namespace: shop, annotations: {ringwall.io/mode: stagged}}",
    );
    fs::write(dir.path().join("all.yaml"), format!("{SHOP}---{policy}")).unwrap();
    let folder = dir.path().to_str().unwrap();
    assert_eq!(verdict(folder, "shop/api"), "deny");
    let ran = ringwall(&["check", "--manifests", folder]);
    assert!(
        ran.out.contains("write staged or enforced") || ran.err.contains("write staged or enforced"),
        "{} {}",
        ran.out,
        ran.err
    );
}

/// A Service of the shop's web, and a policy that lets everyone reach port 8080 of it.
fn behind_a_service(target: u16, more: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec: {{clusterIP: 10.96.0.10, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: {target}}}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: web, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: web}}}}
  ingress: [{{ports: [{{port: 8080}}]}}]
{more}"
    )
}

fn reached(verdict: &str, backends: usize, allowed: usize) -> Value {
    json!({"verdict": verdict, "backends": backends, "allowed": allowed})
}

#[test]
fn services_that_other_pods_reach_are_told_apart_from_pods_that_do() {
    // No verdict of a pod changes, the Service's port leads elsewhere.
    let dir = folders(&behind_a_service(8080, ""), &behind_a_service(9090, ""));
    let plain = diff(dir.path(), &["--exit-code"]);
    assert_eq!(
        (plain.status, plain.out.contains("svc:")),
        (0, false),
        "{}",
        plain.err
    );
    let json = diff(dir.path(), &["--services", "--exit-code", "-o", "json"]);
    assert_eq!(json.status, 1, "{}", json.err);
    let lines = json.lines();
    // The Service's only endpoint reaches itself, whatever the port.
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (line, src) in lines.iter().zip(["shop/api", "shop/db"]) {
        assert_eq!(
            *line,
            json!({"src": src, "dst": "svc:shop/web", "protocol": "TCP", "port": 80,
                "from": reached("allow", 1, 1), "to": reached("deny", 1, 0)})
        );
    }
    let text = diff(dir.path(), &["--services"]).out;
    assert_eq!(
        text,
        "svc:shop/web 80/TCP (http)\n  allow (1 of 1) -> deny (0 of 1)  shop/api, shop/db\n"
    );
}

#[test]
fn services_come_go_and_stay() {
    let second = "---
apiVersion: v1
kind: Service
metadata: {name: lonely, namespace: shop}
spec: {clusterIP: 10.96.0.11, selector: {app: none}, ports: [{port: 53, protocol: UDP}]}
";
    let dir = folders(&behind_a_service(8080, ""), &behind_a_service(8080, second));
    let lines = diff(dir.path(), &["--services", "-o", "json"]).lines();
    assert_eq!(lines.len(), 3);
    for line in &lines {
        assert_eq!(
            (&line["dst"], &line["from"]),
            (&json!("svc:shop/lonely"), &Value::Null)
        );
        assert_eq!(line["to"], reached("reject", 0, 0));
    }
    let dir = folders(&behind_a_service(8080, second), &behind_a_service(8080, second));
    let same = diff(dir.path(), &["--services", "--exit-code"]);
    assert_eq!(
        (same.status, same.out.as_str()),
        (0, "Every pod reaches the same Services as before.\n")
    );
    let dir = folders("", "");
    let none = diff(dir.path(), &["--services"]);
    assert_eq!(none.out, "No Services in either folder.\n");
    let both = diff(dir.path(), &["--services", "--flows", "flows"]);
    assert_eq!(both.status, 2, "{}", both.err);
}
