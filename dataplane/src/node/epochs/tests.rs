#![allow(clippy::unwrap_used)] // in tests a failed unwrap is the failure

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::classify::{
    Generation, ImageBuilder, L4, NodeExemption, PortDecision, PortRange, epoch, is_same_owner,
};

/// What a step of a random history does; the numbers choose among what is there.
#[derive(Clone, Debug)]
enum Step {
    PodComes {
        address: u8,
        cohort: u8,
        class: u8,
    },
    PodGoes(u8),
    /// The address of one pod goes to a pod that comes.
    Replaced {
        pod: u8,
        cohort: u8,
    },
    Relabelled {
        pod: u8,
        cohort: u8,
        class: u8,
    },
    Cell {
        cohort: u8,
        class: u8,
        map: u8,
    },
    Prefix {
        network: u8,
        class: u8,
        unknown: bool,
    },
    PrefixGoes(u8),
    Node {
        address: u8,
        class: u8,
    },
    AllowUnknown(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let n = any::<u8>;
    prop_oneof![
        4 => (n(), n(), n()).prop_map(|(address, cohort, class)| Step::PodComes { address, cohort, class }),
        2 => n().prop_map(Step::PodGoes),
        2 => (n(), n()).prop_map(|(pod, cohort)| Step::Replaced { pod, cohort }),
        2 => (n(), n(), n()).prop_map(|(pod, cohort, class)| Step::Relabelled { pod, cohort, class }),
        4 => (n(), n(), n()).prop_map(|(cohort, class, map)| Step::Cell { cohort, class, map }),
        1 => (n(), n(), any::<bool>()).prop_map(|(network, class, unknown)| Step::Prefix { network, class, unknown }),
        1 => n().prop_map(Step::PrefixGoes),
        1 => (n(), n()).prop_map(|(address, class)| Step::Node { address, class }),
        1 => any::<bool>().prop_map(Step::AllowUnknown),
    ]
}

const COHORTS: u8 = 5;
const CLASSES: u8 = 70;
/// So that addresses of pods, nodes and ranges meet.
const HOSTS: u8 = 24;

struct Pod {
    number: u32,
    record: u32,
    who: u64,
    cohort: u8,
    class: u8,
    addresses: Vec<Addr>,
}

/// A cluster as a compiler would keep it: an identity's epoch covers its class and all that its rows say.
struct Cluster {
    image: ImageBuilder,
    maps: Vec<u32>,
    rows: Vec<u32>,
    cells: BTreeMap<(u8, u8), u8>,
    pods: Vec<Pod>,
    nodes: BTreeMap<u8, u32>,
    prefixes: BTreeMap<u8, u32>,
    born: u64,
}

fn host(address: u8) -> [Addr; 2] {
    let mut v6 = [0; 16];
    (v6[0], v6[1], v6[15]) = (0xfd, 1, address);
    [Addr::v4([10, address % 4, 0, address]), Addr::v6(v6)]
}

impl Cluster {
    fn new() -> Self {
        let mut image = ImageBuilder::new(Generation(0));
        image.classes(CLASSES.into());
        let policy = image.policy("NetworkPolicy", "NetworkPolicy", "default", "web");
        let rule = image.rule(policy, 0);
        let allowed =
            |ports: std::ops::RangeInclusive<u16>| PortRange::allow(6, *ports.start(), *ports.end(), rule);
        let maps: Vec<u32> = [
            vec![],
            vec![allowed(80..=80)],
            vec![allowed(0..=443)],
            vec![allowed(0..=u16::MAX)],
        ]
        .iter()
        .map(|ranges| image.port_map(PortDecision::DENY, ranges))
        .collect();
        let rows = (0..COHORTS)
            .map(|_| image.row(NONE, &vec![maps[0]; CLASSES.into()]))
            .collect();
        Self {
            image,
            maps,
            rows,
            cells: BTreeMap::new(),
            pods: Vec::new(),
            nodes: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            born: 0,
        }
    }

    fn identity(&self, number: u32, who: u64, cohort: u8, class: u8) -> Identity {
        let cells = self.cells.range((cohort, 0)..=(cohort, u8::MAX));
        let rules = cells.fold(
            u64::from(cohort) << 8 | u64::from(class),
            |sum, ((_, class), map)| scrambled(sum ^ u64::from(*class) << 8 ^ u64::from(*map)),
        );
        let row = self.rows[usize::from(cohort)];
        Identity {
            kind: IdentityKind::Pod,
            endpoint: number,
            node: NONE,
            peer_class: class.into(),
            ingress: row,
            egress: if cohort == 0 { row } else { 0 },
            epoch: epoch(scrambled(who), scrambled(rules)),
        }
    }

    fn come(&mut self, addresses: Vec<Addr>, cohort: u8, class: u8) {
        self.born += 1;
        let number = self.image.next_endpoint();
        let is = self.identity(number, self.born, cohort, class);
        let record = self.image.identity(is);
        let name = format!("pod-{}", self.born);
        assert_eq!(self.image.endpoint("default", &name, false, record), number);
        for addr in &addresses {
            self.image.host(*addr, record);
        }
        self.pods.push(Pod {
            number,
            record,
            who: self.born,
            cohort,
            class,
            addresses,
        });
    }

    fn go(&mut self, choice: u8) -> Option<Vec<Addr>> {
        if self.pods.is_empty() {
            return None;
        }
        let pod = self.pods.swap_remove(usize::from(choice) % self.pods.len());
        for addr in &pod.addresses {
            self.image.remove_host(*addr);
        }
        self.image.free_endpoint(pod.number);
        self.image.free_identity(pod.record);
        Some(pod.addresses)
    }

    fn elsewhere(&mut self, kind: IdentityKind, class: u8) -> u32 {
        self.image.identity(Identity {
            kind,
            endpoint: NONE,
            node: NONE,
            peer_class: u32::from(class % CLASSES),
            ingress: 0,
            egress: 0,
            epoch: u64::from(class),
        })
    }

    fn taken(&self, address: u8) -> bool {
        let [v4, _] = host(address);
        self.nodes.contains_key(&address) || self.pods.iter().any(|pod| pod.addresses.contains(&v4))
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::PodComes {
                address,
                cohort,
                class,
            } => {
                let address = address % HOSTS;
                if !self.taken(address) {
                    self.come(host(address).to_vec(), cohort % COHORTS, class % CLASSES);
                }
            }
            Step::PodGoes(choice) => {
                self.go(choice);
            }
            Step::Replaced { pod, cohort } => {
                if let Some(addresses) = self.go(pod) {
                    self.come(addresses, cohort % COHORTS, 3);
                }
            }
            Step::Relabelled { pod, cohort, class } => {
                if self.pods.is_empty() {
                    return;
                }
                let at = usize::from(pod) % self.pods.len();
                (self.pods[at].cohort, self.pods[at].class) = (cohort % COHORTS, class % CLASSES);
                self.write(at);
            }
            Step::Cell { cohort, class, map } => {
                let (cohort, class) = (cohort % COHORTS, class % CLASSES);
                let map = map % self.maps.len() as u8;
                let row = self.rows[usize::from(cohort)];
                self.image
                    .set_cell(row, class.into(), self.maps[usize::from(map)]);
                self.cells.insert((cohort, class), map);
                for at in 0..self.pods.len() {
                    if self.pods[at].cohort == cohort {
                        self.write(at);
                    }
                }
            }
            Step::Prefix {
                network,
                class,
                unknown,
            } => {
                let network = network % 4;
                if !self.prefixes.contains_key(&network) {
                    let kind = if unknown {
                        IdentityKind::Unknown
                    } else {
                        IdentityKind::External
                    };
                    let record = self.elsewhere(kind, class);
                    self.image.prefix(Addr::v4([10, network, 0, 0]), 16, record);
                    self.prefixes.insert(network, record);
                }
            }
            Step::PrefixGoes(network) => {
                let network = network % 4;
                if let Some(record) = self.prefixes.remove(&network) {
                    self.image.remove_prefix(Addr::v4([10, network, 0, 0]), 16);
                    self.image.free_identity(record);
                }
            }
            Step::Node { address, class } => {
                let address = address % HOSTS;
                if let Some(record) = self.nodes.remove(&address) {
                    for addr in host(address) {
                        self.image.remove_host(addr);
                    }
                    self.image.free_identity(record);
                } else if !self.taken(address) {
                    let record = self.elsewhere(IdentityKind::Node, class);
                    for addr in host(address) {
                        self.image.host(addr, record);
                    }
                    self.nodes.insert(address, record);
                }
            }
            Step::AllowUnknown(allow) => self.image.allow_unknown(allow),
        }
    }

    fn write(&mut self, at: usize) {
        let pod = &self.pods[at];
        let is = self.identity(pod.number, pod.who, pod.cohort, pod.class);
        self.image.set_identity(pod.record, is);
    }

    fn snapshot(&mut self, generation: u64) -> Snapshot {
        let image = self.image.image(Generation(generation), [generation as u8; 32]);
        Snapshot::from_image(&image.unwrap())
    }
}

/// What two ends may say to each other, and who they are.
fn answers(snapshot: &Snapshot, src: Addr, dst: Addr) -> ([bool; 3], [u64; 2]) {
    let (from, to) = (snapshot.identify(src), snapshot.identify(dst));
    let allowed = [80, 443, 9000].map(|port| {
        let l4 = L4::of(6, Some(port), 40000);
        let judgement = snapshot.judge(&from, &to, src, dst, l4, NodeExemption::Untrusted);
        judgement.allow()
    });
    (
        allowed,
        [from, to].map(|end| end.epoch.wrapping_add((end.kind as u64) << 56)),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever changes: where a verdict or an end is another, one of the slots that the older snapshot gave ends.
    #[test]
    fn what_can_differ_is_bumped(history in prop::collection::vec(prop::collection::vec(step(), 1..6), 2..12)) {
        let mut cluster = Cluster::new();
        let mut older = cluster.snapshot(1);
        let ends: Vec<Addr> = (0..HOSTS + 4).flat_map(host).chain([Addr::v4([192, 0, 2, 1])]).collect();
        for (steps, generation) in history.into_iter().zip(2..) {
            steps.into_iter().for_each(|step| cluster.take(step));
            let snapshot = cluster.snapshot(generation);
            let changed = changed_slots(&snapshot, &older);
            prop_assert!(!changed.contains(CONSTANT_SLOT));
            for src in &ends {
                for dst in &ends {
                    let (was, is) = (answers(&older, *src, *dst), answers(&snapshot, *src, *dst));
                    let (from, to) = (older.identify(*src), older.identify(*dst));
                    let slots = slots((&from, *src), (&to, *dst));
                    prop_assert!(was == is || changed.ends(slots), "{src} to {dst}: {was:?}, {is:?}");
                }
            }
            older = snapshot;
        }
    }
}

/// What one pod's relabelling bumps: its slot, and no other.
#[test]
fn what_stays_is_not_bumped() {
    let mut cluster = Cluster::new();
    for address in 0..20 {
        cluster.come(host(address).to_vec(), 1 + address % 4, 3);
    }
    let older = cluster.snapshot(1);
    assert!(changed_slots(&cluster.snapshot(2), &older).is_empty());
    cluster.take(Step::Relabelled {
        pod: 7,
        cohort: 2,
        class: 9,
    });
    let snapshot = cluster.snapshot(3);
    let slot = slot_of_end(&older.identify(host(7)[0]), host(7)[0]);
    assert_eq!(
        changed_slots(&snapshot, &older).iter().collect::<Vec<_>>(),
        [slot]
    );
    // A rule of a cohort: those that it applies to.
    let older = snapshot;
    cluster.take(Step::Cell {
        cohort: 1,
        class: 3,
        map: 1,
    });
    let changed = changed_slots(&cluster.snapshot(4), &older);
    let bumped =
        |address: &u8| changed.contains(slot_of_end(&older.identify(host(*address)[0]), host(*address)[0]));
    let addresses: BTreeSet<u8> = (0..20).filter(bumped).collect();
    assert_eq!(addresses, (0..20).filter(|address| address % 4 == 0).collect());
}

#[test]
fn an_address_that_changes_hands_is_bumped_for_its_old_owner() {
    let mut cluster = Cluster::new();
    cluster.come(host(1).to_vec(), 1, 3);
    cluster.come(host(2).to_vec(), 1, 3);
    let older = cluster.snapshot(1);
    cluster.take(Step::Replaced { pod: 0, cohort: 1 });
    let snapshot = cluster.snapshot(2);
    let addr = host(1)[0];
    let (was, is) = (older.identify(addr), snapshot.identify(addr));
    assert!(!is_same_owner(was.epoch, is.epoch));
    assert!(changed_slots(&snapshot, &older).contains(slot_of_end(&was, addr)));
    assert!(!changed_slots(&snapshot, &older).contains(slot_of_end(&older.identify(host(2)[0]), host(2)[0])));
}

#[test]
fn sets_of_slots() {
    let mut set = SlotSet::empty();
    assert!(set.is_empty());
    for slot in [0, 1, 63, 64, 65_535, 65_536] {
        set.insert(slot);
    }
    assert_eq!(set.iter().collect::<Vec<_>>(), [1, 63, 64, 65_535]);
    assert!(set.ends([0, 7, 64]) && !set.ends([0, 7, 8]));
    assert_eq!(SlotSet::all().iter().count(), SLOTS - 1);
    assert!(!SlotSet::all().contains(CONSTANT_SLOT));
}
