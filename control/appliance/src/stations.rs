//! The Ethernet addresses of nodes on the wires, as ARP and neighbour discovery say them (`antiSpoofing: strict`): who claims
//! to be a node first is believed as long as it answers. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ringwall_dataplane::port::PortId;

/// How long a station may take to answer before another one that claims its node is believed.
const ANSWER: Duration = Duration::from_secs(3);
/// A node that traffic waits for, or whose station is doubted, is asked for this often at most.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long it is an alarm that a second station claimed a node.
const CONFLICT_FOR: Duration = Duration::from_secs(900);
/// A node is missing, for an alarm, if it has not answered for so long and traffic asked for it within this time.
const MISSING_AFTER: Duration = Duration::from_secs(5);
const MISSING_FOR: Duration = Duration::from_secs(60);
/// Stations that have not been heard of for so long are forgotten. They are asked for when their pods send again.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A node on a port.
type NodeOnPort = (PortId, String);

/// What is known of the nodes on wires.
#[derive(Debug, Default)]
pub struct Stations {
    known: BTreeMap<NodeOnPort, Station>,
    missing: BTreeMap<NodeOnPort, Missing>,
}

#[derive(Debug)]
struct Station {
    mac: [u8; 6],
    /// When it was heard last.
    heard: Instant,
    /// When another one claimed the node, and when this one was asked last: it has not answered yet.
    doubted: Option<(Instant, Instant)>,
    /// Who else claimed the node last.
    conflict: Option<(Instant, [u8; 6])>,
}

#[derive(Debug)]
struct Missing {
    since: Instant,
    wanted: Instant,
    asked: Instant,
}

/// What follows from what was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Nothing.
    Nothing,
    /// The workers have to know.
    Publish,
    /// Ask the node for its Ethernet address.
    Ask,
}

impl Stations {
    /// A station says that it is a node.
    pub fn observe(&mut self, port: PortId, node: &str, mac: [u8; 6], now: Instant) -> NextStep {
        let key = (port, node.to_owned());
        let Some(station) = self.known.get_mut(&key) else {
            self.missing.remove(&key);
            self.known
                .retain(|_, station| now.duration_since(station.heard) < FORGET_AFTER);
            self.known.insert(key, Station::new(mac, now));
            return NextStep::Publish;
        };
        if station.mac == mac {
            station.heard = now;
            station.doubted = None;
            return NextStep::Nothing;
        }
        station.conflict = Some((now, mac));
        match station.doubted {
            Some((since, _)) if now.duration_since(since) >= ANSWER => {
                tracing::warn!(
                    node,
                    station = %written(mac),
                    before = %written(station.mac),
                    "the node has moved to another station: the previous one does not answer"
                );
                *station = Station::new(mac, now);
                NextStep::Publish
            }
            Some((_, asked)) if now.duration_since(asked) < ASK_EVERY => NextStep::Nothing,
            None if now.duration_since(station.heard) < ASK_EVERY => NextStep::Nothing,
            doubted => {
                let since = doubted.map_or(now, |(since, _)| since);
                station.doubted = Some((since, now));
                NextStep::Ask
            }
        }
    }

    /// A packet of a pod came in whose node's station is not known.
    pub fn request(&mut self, port: PortId, node: &str, now: Instant) -> NextStep {
        let key = (port, node.to_owned());
        if self.known.contains_key(&key) {
            return NextStep::Nothing; // the workers are about to know
        }
        match self.missing.get_mut(&key) {
            Some(missing) => {
                missing.wanted = now;
                if now.duration_since(missing.asked) < ASK_EVERY {
                    return NextStep::Nothing;
                }
                missing.asked = now;
            }
            None => {
                self.missing
                    .retain(|_, missing| now.duration_since(missing.wanted) < MISSING_FOR);
                let missing = Missing {
                    since: now,
                    wanted: now,
                    asked: now,
                };
                self.missing.insert(key, missing);
            }
        }
        NextStep::Ask
    }

    /// Port, node and Ethernet address of each station.
    pub fn iter(&self) -> impl Iterator<Item = (PortId, &str, [u8; 6])> {
        self.known
            .iter()
            .map(|((port, node), station)| (*port, node.as_str(), station.mac))
    }

    /// What an administrator should know, with the names of the ports.
    pub fn alarms(&self, now: Instant, names: &BTreeMap<PortId, String>) -> Vec<String> {
        let name = |port: &PortId| names.get(port).map_or("?", String::as_str);
        let conflicts = self.known.iter().filter_map(|((port, node), station)| {
            let (when, other) = station.conflict?;
            (now.duration_since(when) < CONFLICT_FOR).then(|| {
                format!(
                    "port {}: {} claims to be node {node}, which {} is: it is not believed, its packets of that node and its pods drop",
                    name(port),
                    written(other),
                    written(station.mac)
                )
            })
        });
        let missing = self.missing.iter().filter_map(|((port, node), missing)| {
            let is_missing = now.duration_since(missing.since) >= MISSING_AFTER
                && now.duration_since(missing.wanted) < MISSING_FOR;
            is_missing.then(|| {
                format!(
                    "port {}: node {node} does not answer with its Ethernet address, so packets of its pods drop: `antiSpoofing: strict` \
                     needs nodes in the network of the wire, not behind a router",
                    name(port)
                )
            })
        });
        conflicts.chain(missing).collect()
    }
}

impl Station {
    fn new(mac: [u8; 6], heard: Instant) -> Self {
        Self {
            mac,
            heard,
            doubted: None,
            conflict: None,
        }
    }
}

fn written(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const SECOND: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const PORT: PortId = PortId(0);

    struct Bed {
        stations: Stations,
        begin: Instant,
    }

    impl Bed {
        fn new() -> Self {
            Self {
                stations: Stations::default(),
                begin: Instant::now(),
            }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.begin + Duration::from_secs(seconds)
        }

        fn hear(&mut self, seconds: u64, mac: [u8; 6]) -> NextStep {
            let now = self.at(seconds);
            self.stations.observe(PORT, "n1", mac, now)
        }

        fn want(&mut self, seconds: u64) -> NextStep {
            let now = self.at(seconds);
            self.stations.request(PORT, "n1", now)
        }

        fn alarms(&self, seconds: u64) -> Vec<String> {
            self.stations
                .alarms(self.at(seconds), &BTreeMap::from([(PORT, "in".to_owned())]))
        }

        fn known(&self) -> Vec<(PortId, &str, [u8; 6])> {
            self.stations.iter().collect()
        }
    }

    #[test]
    fn the_first_stays_while_it_answers() {
        let mut bed = Bed::new();
        assert_eq!(bed.hear(0, FIRST), NextStep::Publish);
        assert_eq!(bed.alarms(0), [""; 0]);
        // Whoever claims it makes no more questions than one a second.
        assert_eq!(bed.hear(0, SECOND), NextStep::Nothing);
        for second in 1..=600 {
            assert_eq!(bed.hear(second, SECOND), NextStep::Ask);
            assert_eq!(bed.hear(second, SECOND), NextStep::Nothing);
            assert_eq!(bed.hear(second, FIRST), NextStep::Nothing, "its answer");
            assert_eq!(bed.known(), [(PORT, "n1", FIRST)]);
        }
        let alarms = bed.alarms(600);
        assert_eq!(alarms.len(), 1);
        for words in ["port in", "node n1", "02:00:00:00:00:01", "02:00:00:00:00:02"] {
            assert!(alarms[0].contains(words), "{alarms:?}");
        }
        assert_eq!(bed.alarms(600 + 900), [""; 0]);
    }

    #[test]
    fn another_takes_the_place_of_one_that_does_not_answer() {
        let mut bed = Bed::new();
        assert_eq!(bed.hear(0, FIRST), NextStep::Publish);
        assert_eq!(bed.hear(100, SECOND), NextStep::Ask);
        assert_eq!(bed.hear(102, SECOND), NextStep::Ask, "it has time to answer");
        assert_eq!(bed.known(), [(PORT, "n1", FIRST)]);
        assert_eq!(bed.hear(103, SECOND), NextStep::Publish);
        assert_eq!(bed.known(), [(PORT, "n1", SECOND)]);
        assert_eq!(bed.alarms(103), [""; 0]);
    }

    #[test]
    fn a_silent_node_is_asked_for_and_missed() {
        let mut bed = Bed::new();
        assert_eq!(bed.want(0), NextStep::Ask);
        assert_eq!(bed.want(0), NextStep::Nothing);
        assert_eq!(bed.want(1), NextStep::Ask);
        assert_eq!(bed.alarms(4), [""; 0]);
        assert_eq!(bed.want(6), NextStep::Ask);
        assert!(bed.alarms(6)[0].contains("node n1"), "{:?}", bed.alarms(6));
        assert_eq!(bed.alarms(66), [""; 0], "no packet waits for it any more");
        assert_eq!(bed.hear(67, FIRST), NextStep::Publish);
        assert_eq!(bed.want(68), NextStep::Nothing);
        assert_eq!(bed.alarms(68), [""; 0]);
    }

    #[test]
    fn each_port_has_its_own_stations() {
        let mut bed = Bed::new();
        assert_eq!(bed.hear(0, FIRST), NextStep::Publish);
        let now = bed.at(1);
        assert_eq!(
            bed.stations.observe(PortId(2), "n1", SECOND, now),
            NextStep::Publish
        );
        assert_eq!(bed.stations.observe(PORT, "n2", SECOND, now), NextStep::Publish);
        assert_eq!(
            bed.known(),
            [
                (PORT, "n1", FIRST),
                (PORT, "n2", SECOND),
                (PortId(2), "n1", SECOND)
            ]
        );
        assert_eq!(bed.alarms(1), [""; 0]);
        // What is not heard of for a day is asked for again.
        let later = bed.at(2 * 24 * 3600);
        assert_eq!(bed.stations.observe(PORT, "n3", FIRST, later), NextStep::Publish);
        assert_eq!(bed.known(), [(PORT, "n3", FIRST)]);
    }
}
