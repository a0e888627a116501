//! From events to the workers: one at a time, and many for a while.

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::bail;
use ringwall_testbed::synthetic::Event;

use super::{
    Options, Size,
    control::{Bed, Owners},
    in_process::{AdoptionTracker, ExpectedOwner},
    report::{Report, Target},
};
use crate::{figures::Figures, synthetic::Pace};

/// How long an event may take to arrive before the measurement is given up.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(30);
/// After the arrival of one event, before the next is sent: beyond every debounce.
const PAUSE: Duration = Duration::from_millis(30);
/// Longest time for one row of single changes.
const LIMIT: Duration = Duration::from_secs(60);
/// In which every one of them has had a packet each way.
const SETTLED: Duration = Duration::from_secs(2);
/// Connections that pass during the churn.
const CONNECTIONS: usize = 10_000;

/// One pod that comes or goes, again and again, each after the one before has arrived.
pub(super) fn change(options: &Options, size: Size, report: &mut Report) -> anyhow::Result<()> {
    for verify in ["changed", "off"] {
        let mut bed = Bed::start(size, verify, options.dataplane, false)?;
        let lags = single(&mut bed, options.changes)?;
        let bound = match (verify, size) {
            ("changed", Size::Medium) => Target::P99(2.0),
            ("changed", Size::Large) => Target::P99(10.0),
            _ => Target::None,
        };
        let what = format!(
            "one pod changed to adopted by all workers ({}), verify: {verify}, {}",
            options.dataplane.words(),
            size.words()
        );
        report.add(
            "change",
            what,
            bound,
            Figures::of(lags, "ms"),
            "from the API server's side of the watch",
        )?;
    }
    Ok(())
}

/// Milliseconds of each change.
fn single(bed: &mut Bed, changes: usize) -> anyhow::Result<Vec<f64>> {
    let mut arrivals = AdoptionTracker::default();
    let mut owners = Owners::of(&bed.synthetic);
    let began = Instant::now();
    while arrivals.lags.len() < changes && began.elapsed() < LIMIT {
        let event = bed.synthetic.churn();
        let word = owners.said(&event);
        let at = Instant::now();
        bed.server.event(event);
        if let Some(word) = word {
            arrivals.said(at, word);
            wait(bed, &mut arrivals)?;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(arrivals.lags.iter().map(|lag| lag * 1e3).collect())
}

/// Waits until everything said has arrived.
fn wait(bed: &mut Bed, arrivals: &mut AdoptionTracker) -> anyhow::Result<()> {
    let until = Instant::now() + ARRIVAL_TIMEOUT;
    let mut seen = None;
    while arrivals.waiting() > 0 {
        bed.poll_adoptions(arrivals, &mut seen);
        if Instant::now() > until {
            bed.check_alive()?;
            bail!(
                "{:?} has not arrived after {} s, nor {} after it; control says:\n{}",
                arrivals.oldest(),
                ARRIVAL_TIMEOUT.as_secs(),
                arrivals.waiting() - 1,
                bed.log_text()
            );
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// Pods come and go at a rate, while connections pass.
pub(super) fn sustained(options: &Options, size: Size, report: &mut Report) -> anyhow::Result<()> {
    let mut bed = Bed::start(size, "changed", options.dataplane, true)?;
    let mut owners = Owners::of(&bed.synthetic);
    let mut addresses = owners.addresses();
    let events = make(&mut bed, &mut owners, options);
    // Only those that nothing happens to: none of their connections should be judged again.
    let touched: HashSet<IpAddr> = events.iter().filter_map(|(event, _)| address(event)).collect();
    addresses.retain(|address| !touched.contains(address));
    let connections = bed.establish(&addresses, CONNECTIONS)?;
    // Every connection has had both directions by then.
    std::thread::sleep(SETTLED);
    let before = bed.established()?;
    let generations = bed.adopted();
    let cpu = bed.cpu()?;
    let start = Instant::now();
    let arrivals = send(&mut bed, events, options)?;
    let took = start.elapsed().as_secs_f64();
    let cpu = (bed.cpu()? - cpu) / took;
    let after = bed.established()?;
    let [rejudged, revoked, made]: [u64; 3] =
        std::array::from_fn(|place| after.again[place] - before.again[place]);
    let (packets, restamped) = (after.packets - before.packets, after.restamped - before.restamped);
    let snapshots = bed.adopted().saturating_sub(generations);

    let words = format!("{}, {}", options.dataplane.words(), size.words());
    let rate = options.events_per_second;
    let (lag, cores) = match size {
        Size::Large => (Target::Most(100.0), Target::Most(100.0)),
        _ => (Target::None, Target::None),
    };
    let lags = arrivals.lags.iter().map(|lag| lag * 1e3).collect();
    let note = format!("{snapshots} snapshots adopted");
    let seconds = options.seconds;
    let what = format!("lag of {rate} pod events/s for {seconds} s, {words}");
    report.add("churn", what, lag, Figures::of(lags, "ms"), note)?;
    let what = format!("CPU of control meanwhile, {words}");
    report.add(
        "churn",
        what,
        cores,
        Figures::of(vec![cpu * 100.0], "%"),
        "of one core",
    )?;
    let again = (rejudged + revoked + made) as f64;
    let note = format!(
        "{connections} connections of pods that nothing happens to: {packets} packets, {restamped} restamped, \
         {rejudged} judged again, {revoked} revoked, {made} new entries"
    );
    let what = format!("established flows judged again, {words}");
    report.add(
        "churn",
        what,
        Target::Most(0.0),
        Figures::of(vec![again], "times"),
        note,
    )
}

/// Makes the events, before their time: making them is not what is measured.
fn make(bed: &mut Bed, owners: &mut Owners, options: &Options) -> Vec<(Event, Option<ExpectedOwner>)> {
    let total = u64::from(options.seconds) * u64::from(options.events_per_second);
    (0..total)
        .map(|_| {
            let event = bed.synthetic.churn();
            let word = owners.said(&event);
            (event, word)
        })
        .collect()
}

/// The address of the pod that an event is about.
fn address(event: &Event) -> Option<IpAddr> {
    event.object["status"]["podIP"].as_str()?.parse().ok()
}

/// Sends the events in their time and watches them arrive; waits for the last.
fn send(
    bed: &mut Bed,
    events: Vec<(Event, Option<ExpectedOwner>)>,
    options: &Options,
) -> anyhow::Result<AdoptionTracker> {
    let mut arrivals = AdoptionTracker::default();
    let mut seen = None;
    let pace = Pace::per_second(options.events_per_second);
    for (number, (event, word)) in events.into_iter().enumerate() {
        pace.wait(number as u64);
        let at = Instant::now();
        bed.server.event(event);
        if let Some(word) = word {
            arrivals.said(at, word);
        }
        bed.poll_adoptions(&mut arrivals, &mut seen);
    }
    wait(bed, &mut arrivals)?;
    Ok(arrivals)
}
