//! Input: what somebody tells the builder of images, in generations; and words of the last image that are then changed,
//! with sums that fit.
//!
//! What must hold: a delta leads to the whole image, byte by byte. What is forged is refused, or harmless to ask, as a
//! whole and as a delta, whatever is asked; where it is taken as a whole, it is taken as a delta. A batch is judged as its
//! packets are one by one. What is asked leaves no trace.

use arbitrary::{Arbitrary, Unstructured};
use ringwall_dataplane::{
    addr::Addr,
    classify::{
        FirstPacket, Generation, Identity, IdentityKind, Image, ImageBuilder, L4, NONE, NodeExemption,
        PortDecision, PortRange, Provenance, Row, Snapshot,
    },
    fuzzing::{delta_between, seal, sections},
};

/// Steps of one input that count.
const STEPS: usize = 60;
/// Words that are changed.
const FORGERIES: usize = 12;

#[derive(Arbitrary, Clone, Debug)]
enum Step {
    Pod {
        name: u8,
        addresses: u8,
        class: u8,
        row: u8,
    },
    PodGoes(u8),
    PodChanges {
        which: u8,
        class: u8,
        row: u8,
    },
    Row {
        cells: Vec<u8>,
    },
    Cell {
        row: u8,
        class: u16,
        map: u8,
    },
    Map {
        ranges: Vec<(u8, u16, u8)>,
        otherwise: bool,
    },
    Prefix {
        at: u16,
        length: u8,
        family: bool,
    },
    Policy(u8),
    Node(u8),
    Unknown(bool),
    /// The image is made, and the next one begins.
    Generation,
}

/// A word of an image that is not what the builder wrote.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Forgery {
    section: u8,
    at: u16,
    value: u32,
    /// 0: one byte. 1: two. Else four.
    width: u8,
}

#[derive(Default)]
struct Built {
    pods: Vec<(u32, u32, Vec<Addr>)>,
    rows: Vec<u32>,
    maps: Vec<u32>,
    addresses: Vec<Addr>,
    epoch: u64,
    policies: u32,
}

fn address(name: u8, number: u8) -> Addr {
    if number.is_multiple_of(2) {
        Addr::v4([10, 0, number, name])
    } else {
        Addr::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number, 0, name])
    }
}

fn pick<T: Copy>(all: &[T], which: u8) -> Option<T> {
    all.get(usize::from(which) % all.len().max(1)).copied()
}

impl Built {
    fn identity(&mut self, endpoint: u32, class: u8, row: u8) -> Identity {
        self.epoch += 1;
        Identity {
            kind: IdentityKind::Pod,
            endpoint,
            node: NONE,
            peer_class: u32::from(class) * if class < 128 { 1 } else { 5 },
            ingress: pick(&self.rows, row).unwrap_or(0),
            egress: pick(&self.rows, row / 3).unwrap_or(0),
            epoch: self.epoch,
        }
    }

    fn take(&mut self, image: &mut ImageBuilder, step: &Step) {
        match step {
            Step::Pod {
                name,
                addresses,
                class,
                row,
            } => {
                let own: Vec<Addr> = (0..addresses % 4).map(|number| address(*name, number)).collect();
                if own.iter().any(|addr| self.addresses.contains(addr)) {
                    return;
                }
                let number = image.next_endpoint();
                let is = self.identity(number, *class, *row);
                let identity = image.identity(is);
                image.endpoint("default", &format!("pod-{}", self.epoch), name & 1 == 1, identity);
                for addr in &own {
                    image.host(*addr, identity);
                    self.addresses.push(*addr);
                }
                self.pods.push((number, identity, own));
            }
            Step::PodGoes(which) => {
                if self.pods.is_empty() {
                    return;
                }
                let at = usize::from(*which) % self.pods.len();
                let (number, identity, own) = self.pods.swap_remove(at);
                for addr in own {
                    assert_eq!(image.remove_host(addr), Some(identity));
                    self.addresses.retain(|other| *other != addr);
                }
                image.free_endpoint(number);
                image.free_identity(identity);
            }
            Step::PodChanges { which, class, row } => {
                if self.pods.is_empty() {
                    return;
                }
                let at = usize::from(*which) % self.pods.len();
                let (number, identity) = (self.pods[at].0, self.pods[at].1);
                let is = self.identity(number, *class, *row);
                image.set_identity(identity, is);
            }
            Step::Row { cells } => {
                let cells: Vec<u32> = cells
                    .iter()
                    .take(300)
                    .filter_map(|map| pick(&self.maps, *map))
                    .collect();
                let row = image.row(NONE, &cells);
                // Some rows have another one for what goes to the own node.
                if let Some(last) = self.rows.last().filter(|_| cells.len() % 2 == 1) {
                    image.set_own_node(row, *last);
                }
                self.rows.push(row);
            }
            Step::Cell { row, class, map } => {
                if let (Some(row), Some(map)) = (pick(&self.rows, *row), pick(&self.maps, *map)) {
                    image.set_cell(row, u32::from(class % 700), map);
                }
            }
            Step::Map { ranges, otherwise } => {
                let rule = self.rule(image);
                let mut from = 0_u32;
                let mut list: Vec<PortRange> = Vec::new();
                for (protocol, gap, length) in ranges.iter().take(8) {
                    let lo = from + u32::from(*gap);
                    let hi = lo + u32::from(*length);
                    if hi > 65535 {
                        break;
                    }
                    from = hi + 1;
                    let protocol = [6, 17, 132][usize::from(protocol % 3)];
                    list.push(PortRange::allow(protocol, lo as u16, hi as u16, rule));
                }
                let otherwise = if *otherwise {
                    PortDecision::allow(rule)
                } else {
                    PortDecision::DENY
                };
                self.maps.push(image.port_map(otherwise, &list));
            }
            Step::Prefix { at, length, family } => {
                self.epoch += 1;
                let identity = image.identity(Identity {
                    kind: IdentityKind::External,
                    endpoint: NONE,
                    node: NONE,
                    peer_class: self.epoch as u32 % 100,
                    ingress: 0,
                    egress: 0,
                    epoch: self.epoch,
                });
                let [high, low] = at.to_be_bytes();
                if *family {
                    let mut octets = [0; 16];
                    octets[..4].copy_from_slice(&[0x20, 0x01, high, low]);
                    image.prefix(Addr::v6(octets), length % 129, identity);
                } else {
                    image.prefix(Addr::v4([high, low, low, high]), length % 33, identity);
                }
            }
            Step::Policy(number) => {
                self.policies += 1;
                image.policy("NetworkPolicy", "NetworkPolicy", "default", &format!("p{number}"));
            }
            Step::Node(number) => {
                image.node(&format!("node-{number}"));
            }
            Step::Unknown(allow) => image.allow_unknown(*allow),
            Step::Generation => {}
        }
    }

    fn rule(&mut self, image: &mut ImageBuilder) -> u32 {
        self.policies += 1;
        let policy = image.policy(
            "NetworkPolicy",
            "NetworkPolicy",
            "default",
            &format!("q{}", self.policies % 8),
        );
        image.rule(policy, self.policies)
    }
}

/// Checks one input.
pub fn run(data: &[u8]) {
    let _ = parsed(&mut Unstructured::new(data));
}

fn parsed(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let mut forgeries: Vec<Forgery> = Vec::new();
    for _ in 0..input.int_in_range(0..=FORGERIES)? {
        forgeries.push(input.arbitrary()?);
    }
    let mut steps = Vec::new();
    while steps.len() < STEPS && !input.is_empty() {
        steps.push(input.arbitrary::<Step>()?);
    }
    let mut builder = ImageBuilder::new(Generation(0));
    let mut built = Built {
        maps: vec![ImageBuilder::ISOLATED],
        ..Built::default()
    };
    let mut last: Option<(Image, Snapshot)> = None;
    let mut generation = 0;
    for part in steps.split(|step| matches!(step, Step::Generation)) {
        part.iter().for_each(|step| built.take(&mut builder, step));
        generation += 1;
        let Ok(image) = builder.image(Generation(generation), [generation as u8; 32]) else {
            return Ok(()); // more than the tables can hold
        };
        let whole = image.to_bytes();
        let snapshot = match last
            .take()
            .map(|(base, snapshot)| (image.delta_since(&base), snapshot))
        {
            Some((Some(delta), base)) => base.apply(&delta).expect("a delta of this process's own images"),
            _ => Snapshot::open(&whole).expect("an image that this process made"),
        };
        assert!(snapshot.image().to_bytes() == whole, "a delta leads elsewhere");
        last = Some((image, snapshot));
    }
    if let Some((image, snapshot)) = last {
        exercise(&snapshot, &built.addresses);
        forge(&image, &snapshot, &forgeries, &built.addresses);
    }
    Ok(())
}

fn forge(image: &Image, snapshot: &Snapshot, forgeries: &[Forgery], addresses: &[Addr]) {
    let whole = image.to_bytes();
    let mut forged = whole.clone();
    let sections = sections(&whole);
    for forgery in forgeries {
        // One more than there are: header and section table.
        let section = usize::from(forgery.section) % (sections.len() + 1);
        let (offset, length) = sections.get(section).copied().unwrap_or((0, sections[0].0));
        if length == 0 {
            continue;
        }
        // From either end: tables are long, and what is interesting is at their begin or where they end.
        let at = u64::from(forgery.at) / 2;
        let at = if forgery.at & 1 == 0 {
            at % length
        } else {
            length - 1 - at % length
        };
        let at = (offset + at) as usize;
        let width = [1, 2, 4, 4][usize::from(forgery.width % 4)];
        let end = (at + width).min(forged.len());
        forged[at..end].copy_from_slice(&forgery.value.to_le_bytes()[..end - at]);
    }
    if forged == whole {
        return;
    }
    assert!(Snapshot::open(&forged).is_err(), "damage goes unnoticed");
    if !seal(&mut forged) {
        return;
    }
    let opened = Snapshot::open(&forged);
    if let Ok(opened) = &opened {
        exercise(opened, addresses);
        let again = Snapshot::open(&opened.image().to_bytes()).expect("what was taken can be passed on");
        exercise(&again, addresses);
    }
    let before = exercise(snapshot, addresses);
    let Some(delta) = delta_between(&whole, &forged) else {
        return;
    };
    match snapshot.apply(&delta) {
        Ok(applied) => {
            exercise(&applied, addresses);
        }
        Err(error) => assert!(opened.is_err(), "taken as a whole and not as a delta: {error}"),
    }
    assert_eq!(
        exercise(snapshot, addresses),
        before,
        "the one before has changed"
    );
    let mut damaged = delta;
    if let Some(forgery) = forgeries.first() {
        let at = usize::from(forgery.at) % damaged.len();
        let flipped = forgery.value as u8 | 1;
        damaged[at] ^= flipped;
        assert!(snapshot.apply(&damaged).is_err(), "damage goes unnoticed");
    }
}

/// Asks everything; answers how often something was allowed.
fn exercise(snapshot: &Snapshot, addresses: &[Addr]) -> usize {
    let mut asked: Vec<Addr> = addresses.iter().copied().take(12).collect();
    asked.extend([
        Addr::v4([10, 0, 0, 250]),
        Addr::v4([0, 0, 0, 0]),
        Addr::v4([255; 4]),
        Addr::v6([0; 16]),
        Addr::v6([0xff; 16]),
        Addr::v6([0x20, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    ]);
    let kinds = [
        L4::Port {
            protocol: 6,
            port: 80,
            source: 0,
        },
        L4::Port {
            protocol: 132,
            port: 65535,
            source: 0,
        },
        L4::Port {
            protocol: 17,
            port: 0,
            source: 0,
        },
        L4::NoPort { protocol: 1 },
    ];
    let exemptions = [
        NodeExemption::Trusted,
        NodeExemption::Untrusted,
        NodeExemption::ThisNode,
    ];
    let mut allowed = 0;
    let mut packets = Vec::new();
    for (nth, src) in asked.iter().enumerate() {
        for dst in &asked {
            let l4 = kinds[nth % kinds.len()];
            packets.push(FirstPacket {
                src: *src,
                dst: *dst,
                l4,
            });
        }
        let identity = snapshot.identify(*src);
        let _ = snapshot.endpoint(identity.endpoint);
        let _ = snapshot.node_name(identity.node);
        let rows = snapshot.rows_of(&identity);
        for row in [rows.0, rows.1] {
            let class = identity.peer_class;
            if let (Row::Cells(_), Some(map)) = (row, snapshot.port_map_of(row, class)) {
                let _ = map;
            }
        }
    }
    for (nth, batch) in packets.chunks(64).enumerate() {
        let exemption = exemptions[nth % exemptions.len()];
        let judged = snapshot.judge_many(batch, |_, _, _| exemption);
        assert_eq!(judged.len(), batch.len());
        for (packet, judged) in batch.iter().zip(judged) {
            let (src, dst) = (snapshot.identify(packet.src), snapshot.identify(packet.dst));
            let alone = snapshot.judge(&src, &dst, packet.src, packet.dst, packet.l4, exemption);
            assert_eq!(
                judged.judgement, alone,
                "a batch and one packet of it: {packet:?}"
            );
            assert_eq!((judged.src, judged.dst), (src, dst));
            allowed += usize::from(alone.allow());
            for direction in [alone.ingress, alone.egress] {
                if let Some(Provenance::Isolating(names)) = snapshot.provenance(direction.provenance) {
                    assert!(!direction.allow || names.is_empty() || direction.provenance != NONE);
                }
            }
        }
    }
    let _ = snapshot.find_endpoint("default", "pod-1");
    let _ = snapshot.find_endpoint("", "");
    let _ = snapshot.endpoints().count();
    let _ = snapshot.sizes();
    let _ = snapshot.range_borders(true, 0, u128::from(u32::MAX));
    allowed
}
