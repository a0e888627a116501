//! Changes of policy during a capture: when, and the folder that holds from then on.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, ensure};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::is_stdin;

/// A change of policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) at: EventTime,
    pub(super) manifests: PathBuf,
    /// Where it is written, for messages.
    pub(super) place: String,
}

/// When something happens, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventTime {
    Since1970(u64),
    AfterFirstPacket(u64),
}

impl EventTime {
    /// Since 1970, for a capture that begins then.
    pub(super) fn after(self, first: u64) -> u64 {
        match self {
            Self::Since1970(time) => time,
            Self::AfterFirstPacket(delay) => first.saturating_add(delay),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    /// Verbatim: a time in nanoseconds has more digits than a number of JSON keeps.
    #[serde(borrow)]
    at: &'a RawValue,
    manifests: PathBuf,
}

/// Reads the events of a file, one JSON object per line.
///
/// # Errors
/// A line is no event; the message says which.
pub(super) fn read(file: &Path) -> anyhow::Result<Vec<Event>> {
    let mut text = String::new();
    let read = match is_stdin(file) {
        true => io::stdin().read_to_string(&mut text),
        false => std::fs::File::open(file).and_then(|mut it| it.read_to_string(&mut text)),
    };
    read.with_context(|| format!("cannot read events from {}", file.display()))?;
    let folder = match is_stdin(file) {
        true => Path::new(""),
        false => file.parent().unwrap_or(Path::new("")),
    };
    let lines = (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let place = format!("{}, line {number}", file.display());
            let event = event(line, folder, &place);
            event.with_context(|| place)
        })
        .collect()
}

fn event(line: &str, folder: &Path, place: &str) -> anyhow::Result<Event> {
    let line: Line<'_> = serde_json::from_str(line)
        .map_err(|error| anyhow!("{error}; an event is {{\"at\":TIME,\"manifests\":\"FOLDER\"}}"))?;
    ensure!(
        !is_stdin(&line.manifests),
        "manifests cannot be standard input; write them to a folder"
    );
    let at = line.at.get();
    let text: String = match at.starts_with('"') {
        true => serde_json::from_str(at)?,
        false => at.to_owned(),
    };
    let at = time(&text).ok_or_else(|| {
        anyhow!(
            "{at} is no time: write it in UTC (\"2026-03-01T12:00:00.5Z\"), in seconds since 1970 (1772366400.5), or in \
             seconds after the first packet (\"+2.5\")"
        )
    })?;
    Ok(Event {
        at,
        manifests: folder.join(line.manifests),
        place: place.to_owned(),
    })
}

fn time(text: &str) -> Option<EventTime> {
    if let Some(delay) = text.strip_prefix('+') {
        return seconds(delay).map(EventTime::AfterFirstPacket);
    }
    if let Some(time) = seconds(text) {
        return Some(EventTime::Since1970(time));
    }
    let timestamp: jiff::Timestamp = text.parse().ok()?;
    let nanoseconds = u64::try_from(timestamp.as_nanosecond()).ok()?;
    Some(EventTime::Since1970(nanoseconds))
}

/// Nanoseconds, of decimal seconds with at most nine digits behind the point.
fn seconds(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let nanoseconds: u64 = format!("{fraction:0<9}").parse().ok()?;
    whole.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_utc_or_seconds() {
        use EventTime::{AfterFirstPacket, Since1970};
        for (text, wanted) in [
            ("0", Some(Since1970(0))),
            ("1772366400.5", Some(Since1970(1_772_366_400_500_000_000))),
            ("1772366400.123456789", Some(Since1970(1_772_366_400_123_456_789))),
            (
                "2026-03-01T12:00:00.5Z",
                Some(Since1970(1_772_366_400_500_000_000)),
            ),
            (
                "2026-03-01T13:00:00+01:00",
                Some(Since1970(1_772_366_400_000_000_000)),
            ),
            ("+2.5", Some(AfterFirstPacket(2_500_000_000))),
            ("+0", Some(AfterFirstPacket(0))),
            ("18446744073.709551615", Some(Since1970(u64::MAX))),
            ("18446744073.709551616", None),
            ("1.0000000001", None),
            ("-1", None),
            ("+-1", None),
            ("1.", None),
            (".5", None),
            ("1e3", None),
            ("1960-01-01T00:00:00Z", None),
            ("tomorrow", None),
            ("", None),
        ] {
            assert_eq!(time(text), wanted, "{text}");
        }
    }
}
