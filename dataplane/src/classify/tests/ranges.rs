//! Which addresses a change of prefixes is about.

use super::*;

/// One of few prefixes, so that they lie inside each other and come back.
fn prefix() -> impl Strategy<Value = (Addr, u8)> {
    let byte = || prop::sample::select(vec![0_u8, 1, 127, 128, 255]);
    prop_oneof![
        3 => (any::<[bool; 4]>(), byte(), 0..=32_u8).prop_map(|(ones, byte, length)| {
            let [a, b, c, d] = ones.map(|one| if one { byte } else { 10 });
            (v4(a, b, c, d), length)
        }),
        1 => (byte(), byte(), 0..=128_u8).prop_map(|(high, low, length)| {
            let mut bytes = [0; 16];
            (bytes[0], bytes[1], bytes[15]) = (0xfd, high, low);
            (Addr::from(std::net::IpAddr::from(bytes)), length)
        }),
    ]
}

fn number(addr: Addr) -> (bool, u128) {
    let number = addr.to_u128();
    (
        addr.is_v4(),
        if addr.is_v4() {
            number & 0xffff_ffff
        } else {
            number
        },
    )
}

fn at(v4: bool, number: u128) -> Addr {
    match v4 {
        true => Addr::v4((number as u32).to_be_bytes()),
        false => Addr::from(std::net::IpAddr::from(number.to_be_bytes())),
    }
}

proptest! {
    /// Outside of the addresses that are named, the ranges of the later snapshot are those of the one before.
    #[test]
    fn followed_nodes_name_every_address_that_is_looked_up_otherwise(
        steps in prop::collection::vec(prop::collection::vec((prefix(), 0..4_usize), 1..4), 2..12)
    ) {
        let mut image = ImageBuilder::new(Generation(1));
        let identities: Vec<u32> =
            (1..4).map(|class| image.identity(somewhere(IdentityKind::External, class))).collect();
        let mut before: Option<(Snapshot, RangeNodes)> = None;
        for (step, changes) in steps.into_iter().enumerate() {
            for ((addr, length), identity) in changes {
                let length = if addr.is_v4() { length.min(32) } else { length };
                match identities.get(identity) {
                    Some(identity) => image.prefix(addr, length, *identity),
                    None => drop(image.remove_prefix(addr, length)),
                }
            }
            let image = image.image(Generation(step as u64 + 1), [0; 32]).unwrap();
            let now = Snapshot::open(&image.to_bytes()).unwrap();
            let nodes = RangeNodes::of(&now).unwrap();
            let Some((older, mut followed)) = before.take() else {
                before = Some((now, nodes));
                continue;
            };
            let spans = followed.follow(&older, &now).unwrap();
            for v4 in [true, false] {
                let last = if v4 { u128::from(u32::MAX) } else { u128::MAX };
                let borders = [&older, &now].map(|it| it.range_borders(v4, 0, last).unwrap());
                for border in borders.into_iter().flatten() {
                    let same = older.identify(at(v4, border)) == now.identify(at(v4, border));
                    let named = spans.iter().any(|(of, first, last)| {
                        *of == v4 && (*first..=*last).contains(&border)
                    });
                    prop_assert!(same || named, "{:?} {border:x}, {spans:x?}", v4);
                    prop_assert_eq!(number(at(v4, border)), (v4, border));
                }
            }
            prop_assert_eq!(format!("{followed:?}"), format!("{nodes:?}"));
            before = Some((now, followed));
        }
    }
}

#[test]
fn a_prefix_alone_names_no_others() {
    let mut image = ImageBuilder::new(Generation(1));
    let identity = image.identity(somewhere(IdentityKind::External, 1));
    for number in 0..2000_u32 {
        image.prefix(
            Addr::v4(number.wrapping_mul(0x9e37_79b9).to_be_bytes()),
            32,
            identity,
        );
    }
    let first = Snapshot::from_image(&image.image(Generation(1), [0; 32]).unwrap());
    let mut nodes = RangeNodes::of(&first).unwrap();
    image.prefix(v4(192, 0, 2, 7), 32, identity);
    let second = Snapshot::from_image(&image.image(Generation(2), [0; 32]).unwrap());
    let spans = nodes.follow(&first, &second).unwrap();
    // As wide as the entry that got a node.
    let address = u128::from(u32::from_be_bytes([192, 0, 2, 7]));
    let [(true, from, to)] = spans[..] else {
        panic!("{spans:x?}")
    };
    assert!(
        (from..=to).contains(&address) && to - from < 1 << 24,
        "{spans:x?}"
    );
}
