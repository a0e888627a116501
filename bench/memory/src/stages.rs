//! Which stage of a packet's way an instruction belongs to.

/// The stages, in the order of a packet's way.
pub const STAGES: [&str; 11] = [
    "source", "turn", "parse", "hash", "look-up", "judge", "state", "route", "rewrite", "send", "drop",
];

/// The stage of everything that no function of [`BEGINNINGS`] is around: calls from the measured loop.
pub const OUTSIDE: &str = "turn";

/// Functions that begin a stage. What they call, inlined or not, belongs to it, unless it begins another.
const BEGINNINGS: [(&str, &[&str]); 11] = [
    (
        "source",
        &["receive", "play"], // of the load, not of a worker
    ),
    (
        "turn",
        &[
            "run_once",
            "process_burst",
            "process_packet",
            "housekeeping",
            "flush",
        ],
    ),
    (
        "parse",
        &[
            "parse_and_steer",
            "parse_common",
            "parse",
            "may_be",
            "look_into_tunnel",
            "is_for_router",
        ],
    ),
    (
        "hash",
        &["key", "datagram", "account", "outside_account", "drop_id"],
    ),
    (
        "look-up",
        &[
            "look_up",
            "prefetch_buckets",
            "prefetch_entry",
            "find",
            "find_hinted",
            "revalidate",
        ],
    ),
    (
        "judge",
        &[
            "judge",
            "judge_batch",
            "judge_many",
            "judge_new",
            "judge_flow",
            "judge_flow_slow_path",
            "revalidate_epochs",
        ],
    ),
    (
        "state",
        &["next", "commit", "advance", "update_flow", "create_flow"],
    ),
    ("route", &["route", "route_by_table"]),
    ("rewrite", &["transmit"]),
    ("send", &["send"]),
    (
        "drop",
        &[
            "record_denial",
            "answer_denial",
            "discard",
            "drop_packet",
            "drop_frame",
            "reject",
        ],
    ),
];

/// Files whose functions belong to a stage where they are not inlined: then nothing says what called them.
const FILES: [(&str, &str); 8] = [
    ("/flow/hash.rs", "hash"),
    ("/worker/judge.rs", "judge"),
    ("/worker/route.rs", "route"),
    ("/forward/rewrite.rs", "rewrite"),
    ("/dataplane/src/classify/", "judge"),
    ("/dataplane/src/flow/", "state"),
    ("/dataplane/src/forward/", "route"),
    ("/dataplane/src/wire/", "parse"),
];

/// The crate whose functions begin stages, and the load's own.
const CRATES: [&str; 2] = ["/dataplane/src/", "/bench/memory/src/"];

/// A function around an instruction, and the file that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Demangled; of an inlined function without its path.
    pub function: String,
    /// As the compiler named it.
    pub file: String,
}

/// The stage of an instruction by the functions around it, innermost first; None if none of them begins one.
pub fn of(frames: &[Frame]) -> Option<&'static str> {
    let mut own = frames
        .iter()
        .filter(|frame| CRATES.iter().any(|folder| frame.file.contains(folder)));
    let innermost = own.clone().next()?;
    let by_file = || {
        FILES
            .iter()
            .find(|(file, _)| innermost.file.contains(file))
            .map(|(_, stage)| *stage)
    };
    own.find_map(begun).or_else(by_file)
}

/// The stage that a function begins.
fn begun(frame: &Frame) -> Option<&'static str> {
    let name = name(&frame.function);
    // A state machine's `next`, and no iterator's; a key that is hashed, and not one that is made.
    let is_other = match name {
        "next" => !frame.file.ends_with("state.rs"),
        "key" => !frame.file.ends_with("hash.rs"),
        _ => false,
    };
    let stage = BEGINNINGS.iter().find(|(_, functions)| functions.contains(&name));
    stage.filter(|_| !is_other).map(|(stage, _)| *stage)
}

/// The last part of a function's path, without type parameters and the hash that the compiler adds.
fn name(function: &str) -> &str {
    let plain = match function.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => path,
        _ => function,
    };
    let plain = match plain.find('<') {
        // `name<Type>`; a path that begins with `<` is `<Type>::name`.
        Some(at) if at > 0 && plain.ends_with('>') && !plain[..at].ends_with("::") => &plain[..at],
        _ => plain,
    };
    plain.rsplit("::").next().unwrap_or(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, file: &str) -> Frame {
        Frame {
            function: function.to_owned(),
            file: file.to_owned(),
        }
    }

    #[test]
    fn the_innermost_function_that_begins_a_stage_decides() {
        let worker = "/r/dataplane/src/worker.rs";
        let turn = frame("ringwall_dataplane::worker::Worker<Io>::run_once", worker);
        let parse = frame(
            "parse_and_steer<ringwall_bench_memory::source::FrameSource>",
            worker,
        );
        let fold = frame("fold", "/r/dataplane/src/wire/checksum.rs");
        let hash = frame("key", "/r/dataplane/src/flow/hash.rs");
        let make = frame("key", "/r/dataplane/src/wire.rs");
        let add = frame("wrapping_add", "/rustc/library/core/src/num.rs");
        let foreign = frame("parse", "/rustc/library/core/src/str.rs");
        assert_eq!(
            of(&[add.clone(), fold, parse.clone(), turn.clone()]),
            Some("parse")
        );
        assert_eq!(
            of(&[add.clone(), hash, parse.clone(), turn.clone()]),
            Some("hash")
        );
        assert_eq!(of(&[make, parse, turn.clone()]), Some("parse"));
        assert_eq!(of(&[foreign, turn]), Some("turn"));
        let observe = frame(
            "ringwall_dataplane::flow::tcp::Windows::observe",
            "/r/dataplane/src/flow/tcp.rs",
        );
        assert_eq!(of(&[add.clone(), observe]), Some("state"), "not inlined");
        assert_eq!(of(&[add]), None);
    }

    #[test]
    fn names_lose_path_types_and_hash() {
        for (function, want) in [
            ("adopt<ringwall_dataplane::classify::snapshot::Snapshot>", "adopt"),
            ("ringwall_dataplane::worker::Worker<Io>::run_once", "run_once"),
            (
                "ringwall_dataplane::flow::table::FlowTable::insert::h0123456789abcdef",
                "insert",
            ),
            ("<a::B as c::D>::send", "send"),
            ("{closure#0}<a::B>", "{closure#0}"),
        ] {
            assert_eq!(name(function), want);
        }
    }

    #[test]
    fn every_stage_has_functions() {
        for stage in STAGES {
            assert!(BEGINNINGS.iter().any(|(name, _)| *name == stage), "{stage}");
        }
    }
}
