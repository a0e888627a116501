#![allow(clippy::unwrap_used)] // in tests a failed unwrap is the failure

use super::*;
use crate::{
    classify::{Generation, ImageBuilder, NONE, PortDecision, PortRange, epoch},
    flow::FlowId,
    node::{
        ask::{Tuple, flag as ask_flag},
        cache::{CacheHash, Decision},
        epochs::slots,
    },
    time::Nanos,
};

const NOW: Nanos = Nanos::from_secs(1000);

fn host(last: u8) -> Addr {
    Addr::v4([10, 0, 0, last])
}

/// Five pods; the first ones may be sent TCP 80 by the others.
struct Cluster {
    image: ImageBuilder,
    generation: u64,
    row: u32,
    deny: u32,
    pods: Vec<(u32, Identity)>,
}

impl Cluster {
    fn new() -> Self {
        let mut image = ImageBuilder::new(Generation(0));
        let policy = image.policy("NetworkPolicy", "NetworkPolicy", "default", "web");
        let rule = image.rule(policy, 0);
        let web = image.port_map(PortDecision::DENY, &[PortRange::allow(6, 80, 80, rule)]);
        let deny = image.port_map(PortDecision::DENY, &[]);
        let row = image.row(NONE, &[deny, web, web]);
        let mut pods = Vec::new();
        for last in 0..5 {
            let is = Identity {
                kind: IdentityKind::Pod,
                endpoint: last,
                node: NONE,
                peer_class: if last < 3 { 1 } else { 2 },
                ingress: if last < 2 { row } else { 0 },
                egress: 0,
                epoch: epoch(u64::from(last + 1) << 40, 1),
            };
            let record = image.identity(is);
            image.endpoint("default", &format!("pod-{last}"), false, record);
            image.host(host(last as u8), record);
            pods.push((record, is));
        }
        Self {
            image,
            generation: 0,
            row,
            deny,
            pods,
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        self.generation += 1;
        let hash = [self.generation as u8; 32];
        Snapshot::from_image(&self.image.image(Generation(self.generation), hash).unwrap())
    }

    /// A pod's rules or labels change.
    fn touch(&mut self, pod: usize, change: impl Fn(&mut Identity)) {
        let (record, is) = &mut self.pods[pod];
        is.epoch += 1;
        change(is);
        self.image.set_identity(*record, *is);
    }
}

fn hash(number: u8) -> CacheHash {
    CacheHash {
        signature: 1 + u32::from(number),
        buckets: [u32::from(number) % 8, u32::from(number) / 8 % 8],
    }
}

/// From one pod to another's port 80, by a frontend.
fn tuples(src: u8, dst: u8) -> (Tuple, Tuple) {
    let client = (host(src), 40_000);
    (
        Tuple::new(client, (Addr::v4([10, 96, 0, 1]), 8080)),
        Tuple::new((host(dst), 80), client),
    )
}

fn insert(cache: &FlowCache, snapshot: &Snapshot, src: u8, dst: u8) {
    let (original, reply) = tuples(src, dst);
    let [from, to] = [src, dst].map(|pod| snapshot.identify(host(pod)));
    let decision = Decision {
        verdict: Ok(FlowId(u64::from(src) * 10 + u64::from(dst))),
        zone: 0,
        protocol: 6,
        flags: ask_flag::SRC_LOCAL | ask_flag::DST_LOCAL,
        original,
        reply,
        slots: slots((&from, host(src)), (&to, host(dst))),
        in_ifindex: 0,
    };
    cache.insert(hash(src * 8 + dst), &decision, NOW).unwrap();
}

fn holds(cache: &FlowCache, src: u8, dst: u8) -> bool {
    let (original, reply) = tuples(src, dst);
    cache
        .find(hash(src * 8 + dst), (0, 6), &original, &reply, NOW)
        .is_some()
}

#[test]
fn what_stays_allowed_goes_on_and_what_is_denied_ends() {
    let cache = FlowCache::private(8).unwrap();
    let mut cluster = Cluster::new();
    let first = cluster.snapshot();
    for (src, dst) in [(2, 0), (3, 0), (3, 1), (3, 4)] {
        insert(&cache, &first, src, dst);
    }
    // Pod 2 may not send to the first two any more; pod 3 may.
    let (row, deny) = (cluster.row, cluster.deny);
    cluster.image.set_cell(row, 1, deny);
    cluster.touch(0, |_| {});
    cluster.touch(1, |_| {});
    let second = cluster.snapshot();
    let renewal = end_decisions(&cache, &second, Some(&first));
    assert_eq!((renewal.slots, renewal.renewed, renewal.ended), (2, 2, 1));
    assert!(!holds(&cache, 2, 0));
    assert!(holds(&cache, 3, 0) && holds(&cache, 3, 1) && holds(&cache, 3, 4));
    // Pod 3 changes sides: what was renewed once ends as anything else.
    cluster.touch(3, |is| is.peer_class = 1);
    let third = cluster.snapshot();
    let renewal = end_decisions(&cache, &third, Some(&second));
    assert_eq!((renewal.slots, renewal.renewed, renewal.ended), (1, 1, 2));
    assert!(!holds(&cache, 3, 0) && !holds(&cache, 3, 1) && holds(&cache, 3, 4));
    // Nothing has changed, or nothing is known of what was before.
    assert_eq!(
        end_decisions(&cache, &cluster.snapshot(), Some(&third)),
        Renewal::default()
    );
    assert!(holds(&cache, 3, 4));
    assert_eq!(end_decisions(&cache, &third, None).renewed, 0);
    assert!(!holds(&cache, 3, 4));
}

/// Renewed entries hold before the bump and after it, and not after the next.
#[test]
fn a_renewed_entry_holds_on_both_sides_of_the_bump() {
    let cache = FlowCache::private(8).unwrap();
    let mut cluster = Cluster::new();
    let first = cluster.snapshot();
    insert(&cache, &first, 3, 4);
    cluster.touch(4, |_| {});
    let second = cluster.snapshot();
    let changed = changed_slots(&second, &first);
    assert_eq!(cache.renew(&changed, |_| true), (1, 0));
    assert!(holds(&cache, 3, 4));
    cache.bump(&changed);
    assert!(holds(&cache, 3, 4));
    cache.bump(&changed);
    assert!(!holds(&cache, 3, 4));
    // Renewed, and its publisher dies before the bump: the next one's bump ends it.
    insert(&cache, &second, 3, 4);
    assert_eq!(cache.renew(&changed, |_| true), (1, 0));
    assert_eq!(cache.renew(&SlotSet::all(), |_| false), (0, 1));
    assert!(holds(&cache, 3, 4));
    cache.bump(&SlotSet::all());
    assert!(!holds(&cache, 3, 4));
}

#[test]
fn an_address_with_another_owner_goes_on_with_nothing() {
    let cache = FlowCache::private(8).unwrap();
    let mut cluster = Cluster::new();
    let first = cluster.snapshot();
    insert(&cache, &first, 3, 4);
    cluster.touch(4, |is| is.epoch = epoch(99 << 40, 1));
    let second = cluster.snapshot();
    let renewal = end_decisions(&cache, &second, Some(&first));
    assert_eq!((renewal.renewed, renewal.ended), (0, 1));
    assert!(!holds(&cache, 3, 4));
}
