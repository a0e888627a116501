//! Images that are changed in place, and deltas between them: always as if made anew, whatever came before.

use hashbrown::HashMap;

use super::{super::table::CHUNK_BYTES, *};
use crate::classify::layout::{DeltaHeader, PatchRecord};

/// What a step of a random history does; the numbers choose among what is there.
#[derive(Clone, Debug)]
enum Step {
    PodComes { name: u16, addresses: u8 },
    PodGoes(u16),
    PodChanges(u16),
    RowComes { cells: u16 },
    RowGoes(u16),
    Cell { row: u16, class: u16, map: u16 },
    Prefix { at: u16, length: u8 },
    PrefixGoes(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..300_u16, 0..4_u8).prop_map(|(name, addresses)| Step::PodComes { name, addresses }),
        2 => any::<u16>().prop_map(Step::PodGoes),
        2 => any::<u16>().prop_map(Step::PodChanges),
        2 => (0..200_u16).prop_map(|cells| Step::RowComes { cells }),
        1 => any::<u16>().prop_map(Step::RowGoes),
        4 => (any::<u16>(), 0..700_u16, any::<u16>()).prop_map(|(row, class, map)| Step::Cell { row, class, map }),
        1 => (any::<u16>(), 0..=16_u8).prop_map(|(at, length)| Step::Prefix { at, length }),
        1 => any::<u16>().prop_map(Step::PrefixGoes),
    ]
}

struct PodOf {
    number: u32,
    identity: u32,
    is: Identity,
    addresses: Vec<Addr>,
}

/// What the builder was told, kept plainly.
#[derive(Default)]
struct Mirror {
    pods: BTreeMap<u16, PodOf>,
    /// Cells of rows, and what holds past them.
    rows: BTreeMap<u32, (HashMap<u32, u32>, u32)>,
    /// By address and length: identity and its class.
    prefixes: BTreeMap<(u16, u8), (u32, u32)>,
    maps: Vec<u32>,
    next_epoch: u64,
}

fn pick<K: Copy, V>(map: &BTreeMap<K, V>, choice: u16) -> Option<K> {
    let at = usize::from(choice) % map.len().max(1);
    map.keys().nth(at).copied()
}

/// An address of the tenth network: IPv4 where even, else IPv6.
fn address(name: u16, number: u8) -> Addr {
    let [high, low] = name.to_be_bytes();
    if number.is_multiple_of(2) {
        v4(10, high, low, number)
    } else {
        Addr::v6([0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number, high, low])
    }
}

/// An address of 172.16.0.0/16.
fn outside(at: u16) -> Addr {
    let [high, low] = at.to_be_bytes();
    v4(172, 16, high, low)
}

/// So many leading ones.
fn leading(length: u8) -> u16 {
    u16::MAX.checked_shl(16 - u32::from(length)).unwrap_or(0)
}

impl Mirror {
    fn new(image: &mut ImageBuilder) -> Self {
        let policy = image.policy("NetworkPolicy", "NetworkPolicy", "default", "web");
        let maps = (0..40)
            .map(|number| {
                let rule = image.rule(policy, number);
                image.port_map(
                    PortDecision::DENY,
                    &[PortRange::allow(6, 1, 1 + number as u16, rule)],
                )
            })
            .chain([ImageBuilder::ISOLATED])
            .collect();
        Self {
            maps,
            ..Self::default()
        }
    }

    fn identity(&mut self, number: u32) -> Identity {
        self.next_epoch += 1;
        Identity {
            kind: IdentityKind::Pod,
            endpoint: number,
            node: NONE,
            peer_class: (self.next_epoch * 7 % 600) as u32,
            ingress: pick(&self.rows, self.next_epoch as u16).unwrap_or(0),
            egress: 0,
            epoch: self.next_epoch,
        }
    }

    fn take(&mut self, image: &mut ImageBuilder, step: Step) {
        match step {
            Step::PodComes { name, addresses } => {
                if self.pods.contains_key(&name) {
                    return;
                }
                let number = image.next_endpoint();
                let is = self.identity(number);
                let identity = image.identity(is);
                assert_eq!(
                    image.endpoint(
                        &format!("space-{}", name % 7),
                        &format!("pod-{name}"),
                        false,
                        identity
                    ),
                    number
                );
                let addresses: Vec<Addr> = (0..addresses).map(|number| address(name, number)).collect();
                addresses.iter().for_each(|addr| image.host(*addr, identity));
                let pod = PodOf {
                    number,
                    identity,
                    is,
                    addresses,
                };
                self.pods.insert(name, pod);
            }
            Step::PodGoes(choice) => {
                let Some(pod) = pick(&self.pods, choice).and_then(|name| self.pods.remove(&name)) else {
                    return;
                };
                for addr in pod.addresses {
                    assert_eq!(image.remove_host(addr), Some(pod.identity));
                }
                image.free_endpoint(pod.number);
                image.free_identity(pod.identity);
            }
            Step::PodChanges(choice) => {
                let Some(name) = pick(&self.pods, choice) else {
                    return;
                };
                let is = self.identity(self.pods[&name].number);
                let pod = self.pods.get_mut(&name).unwrap();
                pod.is = is;
                image.set_identity(pod.identity, is);
            }
            Step::RowComes { cells } => {
                let maps: Vec<u32> = (0..cells)
                    .map(|at| self.maps[usize::from(at / 5) % self.maps.len()])
                    .collect();
                let row = image.row(NONE, &maps);
                let rest = maps.last().copied().unwrap_or(ImageBuilder::ISOLATED);
                self.rows.insert(row, ((0..).zip(maps).collect(), rest));
            }
            Step::RowGoes(choice) => {
                let Some(row) = pick(&self.rows, choice) else {
                    return;
                };
                // Whoever has it must get another first.
                if self.pods.values().all(|pod| pod.is.ingress != row) {
                    self.rows.remove(&row);
                    image.free_row(row);
                }
            }
            Step::Cell { row, class, map } => {
                let Some(row) = pick(&self.rows, row) else {
                    return;
                };
                let map = self.maps[usize::from(map) % self.maps.len()];
                image.set_cell(row, class.into(), map);
                self.rows.get_mut(&row).unwrap().0.insert(class.into(), map);
            }
            Step::Prefix { at, length } => {
                let key = (at & leading(length), length);
                if self.prefixes.contains_key(&key) {
                    return;
                }
                self.next_epoch += 1;
                let class = 1 + self.next_epoch as u32 % 500;
                let identity = image.identity(somewhere(IdentityKind::External, class));
                image.prefix(outside(at), 16 + length, identity);
                self.prefixes.insert(key, (identity, class));
            }
            Step::PrefixGoes(choice) => {
                let Some(key) = pick(&self.prefixes, choice) else {
                    return;
                };
                let (identity, _) = self.prefixes.remove(&key).unwrap();
                assert_eq!(image.remove_prefix(outside(key.0), 16 + key.1), Some(identity));
                image.free_identity(identity);
            }
        }
    }

    /// Asks a snapshot for all that it should know.
    fn check(&self, snapshot: &Snapshot) {
        assert_eq!(snapshot.endpoints().count(), self.pods.len());
        let hosts: usize = self.pods.values().map(|pod| pod.addresses.len()).sum();
        assert_eq!(snapshot.sizes().hosts as usize, hosts);
        for (name, pod) in &self.pods {
            let (space, text) = (format!("space-{}", name % 7), format!("pod-{name}"));
            let endpoint = snapshot.find_endpoint(&space, &text).unwrap();
            assert_eq!(
                (endpoint.number, endpoint.identity),
                (pod.number, pod.is),
                "{name}"
            );
            for addr in &pod.addresses {
                assert_eq!(snapshot.identify(*addr), pod.is, "{addr}");
            }
            assert_eq!(
                snapshot.identify(address(*name, 200)).kind,
                IdentityKind::External
            );
        }
        for at in (0..=u16::MAX).step_by(97) {
            let holds = |(prefix, length): &&(u16, u8)| at & leading(*length) == *prefix;
            let longest = self
                .prefixes
                .keys()
                .filter(holds)
                .max_by_key(|(_, length)| length);
            let class = longest.map_or(0, |key| self.prefixes[key].1);
            assert_eq!(snapshot.identify(outside(at)).peer_class, class, "{at:x}");
        }
        for (row, (cells, rest)) in &self.rows {
            for class in 0..snapshot.sizes().classes {
                let map = cells.get(&class).unwrap_or(rest);
                let found = snapshot.port_map_of(Row::Cells(*row), class);
                assert_eq!(found, Some(*map), "row {row}, class {class}");
            }
        }
    }
}

fn header(delta: &[u8]) -> DeltaHeader {
    DeltaHeader::read_from_prefix(delta).unwrap().0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// After any history: what the deltas lead to is, byte for byte, what the whole image is; it says what was told;
    /// and no image that was answered before has changed.
    #[test]
    fn deltas_lead_to_the_whole_image(history in prop::collection::vec(prop::collection::vec(step(), 1..30), 1..10)) {
        let mut builder = ImageBuilder::new(Generation(0));
        let mut mirror = Mirror::new(&mut builder);
        let mut image = builder.image(Generation(1), [1; 32]).unwrap();
        let mut snapshot = Snapshot::open(&image.to_bytes()).unwrap();
        let mut before = Vec::new();
        for (steps, generation) in history.into_iter().zip(2..) {
            before.push((image.clone(), image.to_bytes()));
            steps.into_iter().for_each(|step| mirror.take(&mut builder, step));
            let next = builder.image(Generation(generation), [generation as u8; 32]).unwrap();
            snapshot = match next.delta_since(&image) {
                Some(delta) => snapshot.apply(&delta).unwrap(),
                None => Snapshot::open(&next.to_bytes()).unwrap(),
            };
            image = next;
            let whole = image.to_bytes();
            prop_assert_eq!(whole.len() as u64, image.bytes());
            prop_assert!(snapshot.image().to_bytes() == whole);
            prop_assert_eq!((snapshot.generation(), snapshot.hash()), (Generation(generation), [generation as u8; 32]));
            mirror.check(&snapshot);
            mirror.check(&Snapshot::open(&whole).unwrap());
            mirror.check(&Snapshot::from_image(&image));
        }
        for (image, bytes) in before {
            prop_assert!(image.to_bytes() == bytes);
        }
    }

    /// Whatever a delta brings, with sums that fit: refused, or harmless to ask, as a whole image would be.
    #[test]
    fn forged_deltas_are_refused_or_harmless(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let bytes = image();
        let base = Image::read(&bytes).unwrap();
        let mut forged = bytes.clone();
        for (at, value) in &changes {
            let at = at.index(forged.len());
            forged[at] = *value;
        }
        if let Ok(forged) = Image::read(&sealed(forged))
            && let Some(delta) = forged.delta_since(&base)
        {
            let base = Snapshot::open(&bytes).unwrap();
            let before = exercise(&base);
            if let Ok(snapshot) = base.apply(&delta) {
                exercise(&snapshot);
            }
            prop_assert_eq!(exercise(&base), before);
        }
    }
}

/// Two images that differ in one pod's identity, and the delta between them.
fn one_change() -> (Snapshot, Snapshot, Vec<u8>) {
    let mut builder = ImageBuilder::new(Generation(1));
    let pod = Identity {
        endpoint: 0,
        ..somewhere(IdentityKind::Pod, 0)
    };
    let identity = builder.identity(pod);
    builder.endpoint("a", "b", false, identity);
    builder.host(v4(10, 0, 0, 1), identity);
    let first = builder.image(Generation(4), [4; 32]).unwrap();
    builder.set_identity(identity, Identity { epoch: 77, ..pod });
    let second = builder.image(Generation(5), [5; 32]).unwrap();
    let delta = second.delta_since(&first).unwrap();
    (
        Snapshot::open(&first.to_bytes()).unwrap(),
        Snapshot::from_image(&second),
        delta,
    )
}

#[test]
fn one_changed_identity_is_one_short_patch() {
    let (first, second, delta) = one_change();
    assert_eq!(header(&delta).patches, 1);
    let least = size_of::<DeltaHeader>() + SECTIONS * 8 + size_of::<PatchRecord>() + 8;
    assert_eq!(delta.len(), least);
    let applied = first.apply(&delta).unwrap();
    assert_eq!(applied.identify(v4(10, 0, 0, 1)).epoch, 77);
    assert_eq!(first.identify(v4(10, 0, 0, 1)).epoch, 1, "the one before stays");
    assert!(applied.image().to_bytes() == second.image().to_bytes());
}

#[test]
fn every_damaged_byte_of_a_delta_is_noticed() {
    let (first, _, delta) = one_change();
    for at in 0..delta.len() {
        let mut damaged = delta.clone();
        damaged[at] ^= 0x10;
        assert!(first.apply(&damaged).is_err(), "byte {at}");
        assert!(first.apply(&delta[..at]).is_err(), "cut to {at} bytes");
    }
    assert_eq!(first.identify(v4(10, 0, 0, 1)).epoch, 1);
    assert!(first.apply(&delta).is_ok());
}

/// Writes a delta's checksum anew.
fn sealed_delta(mut delta: Vec<u8>) -> Vec<u8> {
    let (mut header, rest) = DeltaHeader::read_from_prefix(&delta).unwrap();
    header.checksum = [0; 32];
    header.checksum = checksum(&[header.as_bytes(), rest]);
    delta[..size_of::<DeltaHeader>()].copy_from_slice(header.as_bytes());
    delta
}

/// A base that is not there, patches that leave their section, memory without end.
#[test]
fn deltas_that_contradict_themselves_are_refused() {
    let (first, second, delta) = one_change();
    let refused = |delta: &[u8]| first.apply(delta).unwrap_err();
    let forged = |at: usize, value: u64| {
        let mut forged = delta.clone();
        forged[at..at + 8].copy_from_slice(&value.to_le_bytes());
        refused(&sealed_delta(forged))
    };
    assert!(matches!(
        second.apply(&delta),
        Err(ImageError::Base { wanted: 4, found: 5 })
    ));
    let base = std::mem::offset_of!(DeltaHeader, base);
    assert!(matches!(
        forged(base, 9),
        ImageError::Base { wanted: 9, found: 4 }
    ));
    // The number is right, the content is another's.
    assert!(matches!(
        forged(base + 8, 9),
        ImageError::Base { wanted: 4, found: 4 }
    ));
    let lengths = size_of::<DeltaHeader>();
    for length in [0, 1 << 40, u64::MAX] {
        let error = forged(lengths, length).to_string();
        assert!(error.contains("length out of bounds"), "{length}: {error}");
    }
    let error = forged(lengths, 3).to_string(); // a third identity, of zeros
    assert!(error.contains("identity 2"), "{error}");
    let patch = lengths + SECTIONS * 8;
    for (section, chunk, offset, length) in [
        (19, 0, 0, 8),
        (0, 1, 0, 8),
        (0, 0, CHUNK_BYTES as u32, 8),
        (0, 0, u32::MAX, 8),
        (0, 0, 64, 8),
        (0, 0, 0, 9),
        (0, 0, 0, u32::MAX),
    ] {
        let record = PatchRecord {
            section,
            chunk,
            offset,
            length,
        };
        let mut forged = delta.clone();
        forged[patch..patch + size_of::<PatchRecord>()].copy_from_slice(record.as_bytes());
        let error = refused(&sealed_delta(forged)).to_string();
        assert!(error.contains("patch"), "{record:?}: {error}");
    }
    let mut longer = delta.clone();
    longer.extend([0; 8]);
    longer[16..24].copy_from_slice(&(delta.len() as u64 + 8).to_le_bytes());
    let error = refused(&sealed_delta(longer)).to_string();
    assert!(error.contains("belong to no patch"), "{error}");
    // Another value than was published, sealed: the sum tells.
    let mut other = delta.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    assert_eq!(refused(&sealed_delta(other)), ImageError::Checksum);
}

/// Names, sets and maps that go and come back leave nothing behind that grows.
#[test]
fn what_comes_and_goes_takes_no_more_room() {
    let mut builder = ImageBuilder::new(Generation(1));
    let mut sizes = Vec::new();
    for round in 0..50_u32 {
        let policy = builder.policy(
            "NetworkPolicy",
            "NetworkPolicy",
            "space",
            &format!("policy-{round:03}"),
        );
        let rule = builder.rule(policy, 0);
        let port = 100 + round as u16;
        let map = builder.port_map(PortDecision::DENY, &[PortRange::allow(6, port, port, rule)]);
        let isolating = builder.isolating(&[policy]);
        let row = builder.row(isolating, &[map; 65]);
        builder.release_port_map(map);
        let number = builder.next_endpoint();
        let identity = builder.identity(Identity {
            endpoint: number,
            ingress: row,
            ..somewhere(IdentityKind::Pod, 0)
        });
        builder.endpoint("space", &format!("pod-{round:03}"), false, identity);
        builder.host(v6(round as u16), identity);
        let node = builder.node(&format!("node-{round:03}"));
        let image = builder.image(Generation(u64::from(round) + 1), [0; 32]).unwrap();
        let snapshot = Snapshot::open(&image.to_bytes()).unwrap();
        let verdict = judge(&snapshot, v4(1, 1, 1, 1), v6(round as u16), tcp(port)).ingress;
        assert_eq!(verdict.effect, Effect::Allow);
        let verdict = judge(&snapshot, v4(1, 1, 1, 1), v6(round as u16), tcp(99)).ingress;
        assert_eq!(verdict.effect, Effect::Isolated);
        assert!(snapshot.provenance(verdict.provenance).is_some());
        sizes.push(image.bytes());
        builder.remove_host(v6(round as u16));
        builder.free_endpoint(number);
        builder.free_identity(identity);
        builder.free_node(node);
        builder.free_row(row);
        builder.release_isolating(isolating);
        builder.free_rule(rule);
        builder.free_policy(policy);
        let empty = builder.image(Generation(u64::from(round) + 1), [0; 32]).unwrap();
        let empty = Snapshot::open(&empty.to_bytes()).unwrap();
        assert_eq!((empty.endpoints().count(), empty.node_name(node)), (0, None));
    }
    assert!(sizes.iter().all(|size| *size == sizes[0]), "{sizes:?}");
    assert!(builder.waste() > 0.0);
}

/// More rows than one tile and more classes than one page of tiles, cell by cell.
#[test]
fn rows_and_columns_may_come_in_any_order() {
    let mut builder = ImageBuilder::new(Generation(1));
    let policy = builder.policy("t", "k", "n", "p");
    let maps: Vec<u32> = (0..7)
        .map(|rule| {
            let rule = builder.rule(policy, rule);
            builder.port_map(PortDecision::allow(rule), &[])
        })
        .collect();
    let map = |row: u32, class: u32| maps[(row * 31 + class * 17) as usize % maps.len()];
    let mut rows = Vec::new();
    for round in 0..40_u32 {
        for _ in 0..20 {
            rows.push(builder.row(NONE, &[]));
        }
        for row in &rows {
            builder.set_cell(*row, round * 30, map(*row, round * 30));
        }
    }
    let snapshot = Snapshot::open(&builder.image(Generation(1), [0; 32]).unwrap().to_bytes()).unwrap();
    assert_eq!((snapshot.sizes().rows, snapshot.sizes().classes), (800, 1171));
    for (number, row) in rows.iter().enumerate() {
        for class in 0..1171 {
            // A row begins with the round in which it came.
            let is_named = class % 30 == 0 && class / 30 >= number as u32 / 20;
            let expected = if is_named {
                map(*row, class)
            } else {
                ImageBuilder::ISOLATED
            };
            assert_eq!(snapshot.port_map_of(Row::Cells(*row), class), Some(expected));
        }
    }
}
