use crate::{
    machine::Machine,
    report,
    samples::{Better, Outcome, Party, Plan, Reading, Round, Row, Section, Target, Turn, load_all},
};

/// A machine that does not exist.
fn machine() -> Machine {
    Machine {
        cpu: "Imaginary CPU".into(),
        cpus: 2,
        is_virtual: true,
        governor: String::new(),
        memory_kb: 8 << 20,
        kernel: "6.18.0".into(),
        profile: "release".into(),
        busy_before: 0.01,
        load_before: "0.10 0.20 0.30".into(),
        load_after: "1.10 0.20 0.30".into(),
    }
}

fn plan(id: &str) -> Plan {
    Plan {
        id: id.into(),
        title: format!("title of {id}"),
        section: Section::Throughput,
        unit: "Mpps".into(),
        better: Better::Higher,
        target: Some(Target::Ratio(0.9)),
        parameters: [("flows".to_owned(), 1000.0)].into(),
    }
}

fn party(name: &str) -> Party {
    Party {
        name: name.into(),
        setup: format!("set-up of {name}"),
    }
}

/// A row of pairs (subject, control).
fn measured(id: &str, pairs: &[(f64, f64)]) -> Row {
    let rounds = pairs
        .iter()
        .enumerate()
        .map(|(index, (subject, control))| Round {
            first: if index % 2 == 0 {
                Turn::Subject
            } else {
                Turn::Control
            },
            subject: Reading::from(*subject),
            control: Some(Reading::from(*control)),
        })
        .collect();
    let outcome = Outcome::Measured {
        subject: party("ringwall"),
        control: Some(party("bare l2fwd")),
        rounds,
    };
    Row::new(&plan(id), &machine(), outcome)
}

#[test]
fn figures_are_medians_of_the_ratios_of_each_round() {
    let row = measured("wire", &[(0.8, 1.0), (0.99, 1.1), (0.97, 1.0), (1.03, 1.02)]);
    let ratios = row.ratios().unwrap();
    assert!((ratios.ratio.median - f64::midpoint(0.9, 0.97)).abs() < 1e-12);
    assert_eq!(ratios.ratio.least, 0.8);
    assert_eq!(ratios.ratio.most, 1.03 / 1.02);
    assert!((ratios.control_movement - 0.1 / 1.01).abs() < 1e-12);
    assert!(ratios.is_unsteady());
    assert_eq!(row.reached(), Some(true));
}

#[test]
fn five_percent_of_movement_are_steady_and_more_is_not_and_one_round_is_unknown() {
    let unsteady = |pairs: &[(f64, f64)]| measured("x", pairs).ratios().unwrap().is_unsteady();
    assert!(!unsteady(&[(1.0, 100.0), (1.0, 102.0), (1.0, 104.9)]));
    assert!(unsteady(&[(1.0, 100.0), (1.0, 102.0), (1.0, 105.3)]));
    assert!(unsteady(&[(1.0, 100.0)]));
}

#[test]
fn a_row_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut row = measured("wire", &[(0.1 + 0.2, 1.0), (1.0 / 3.0, 1.0)]);
    if let Outcome::Measured { rounds, .. } = &mut row.outcome {
        rounds[0].subject.detail = serde_json::json!({"sent": 12, "received": 11});
    }
    row.save(folder.path()).unwrap();
    Row::skipped(&plan("absent"), &machine(), "there is no such | peer\n here")
        .save(folder.path())
        .unwrap();
    let rows = load_all(folder.path()).unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].why_skipped(), Some("there is no such | peer\n here"));
    assert_eq!(rows[1].rounds(), row.rounds());
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        2,
        "nothing is left beside"
    );
}

#[test]
fn a_control_that_measured_nothing_makes_a_skipped_row() {
    let folder = tempfile::tempdir().unwrap();
    let file = measured("wire", &[(1.0, 0.0)])
        .or_skipped()
        .save(folder.path())
        .unwrap();
    let row = Row::load(&file).unwrap();
    assert!(row.why_skipped().unwrap().contains("round 1"), "{row:?}");
}

#[test]
fn a_damaged_or_foreign_file_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = measured("wire", &[(1.0, 1.0)]).save(folder.path()).unwrap();
    let other = folder.path().join("other.json");
    std::fs::rename(&file, &other).unwrap();
    let error = format!("{:#}", load_all(folder.path()).unwrap_err());
    assert!(
        error.contains("other.json") && error.contains("`wire`"),
        "{error}"
    );
    std::fs::write(&other, "{}").unwrap();
    assert!(load_all(folder.path()).is_err());
}

#[test]
fn stages_are_a_table_of_medians() {
    let reading = |parse: f64, total: f64| Reading {
        value: total,
        detail: serde_json::json!({"parse": parse, "send": 4.0, "total": total}),
    };
    let plan = Plan {
        section: Section::Memory,
        unit: "ns/packet".into(),
        target: None,
        ..plan("stages")
    };
    let readings = [reading(10.0, 50.0), reading(12.0, 60.0), reading(30.0, 61.0)];
    let staged = Row::alone(&plan, &machine(), party("worker"), readings);
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results");
    staged.save(&results).unwrap();
    measured("wire", &[(1.0, 1.0)]).save(&results).unwrap();
    report::write_all(folder.path()).unwrap();
    let text = std::fs::read_to_string(folder.path().join("REPORT.md")).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("| title of stages | ns/packet |"))
        .unwrap_or_else(|| panic!("{text}"));
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    assert!(cells.contains(&"12.0") && cells.contains(&"4.00"), "{line}");
    assert_eq!(cells.iter().rev().nth(1), Some(&"60.0"), "{line}");
    assert_eq!(
        text.matches("By stage").count(),
        1,
        "rows without stages have no table"
    );
}

#[test]
fn check_finds_a_figure_that_the_samples_do_not_give() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results");
    measured("wire", &[(0.95, 1.0), (0.96, 1.0), (0.97, 1.01)])
        .save(&results)
        .unwrap();
    measured("shaken", &[(0.95, 1.0), (0.96, 2.0)])
        .save(&results)
        .unwrap();
    Row::skipped(&plan("absent"), &machine(), "no such | peer")
        .save(&results)
        .unwrap();
    report::write_all(folder.path()).unwrap();
    report::check(folder.path()).unwrap();
    let file = folder.path().join("REPORT.md");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(
        text.contains("| **0.960** |") && text.contains("0.9: reached") || text.contains("0.900: reached"),
        "{text}"
    );
    assert!(text.contains("≈ **0.715**"), "the mark is in the figure: {text}");
    assert!(text.contains("no such \\| peer"), "{text}");
    std::fs::write(&file, text.replace("**0.960**", "**0.980**")).unwrap();
    let error = format!("{:#}", report::check(folder.path()).unwrap_err());
    assert!(error.contains("0.980") && error.contains("REPORT.md:"), "{error}");
    report::write_all(folder.path()).unwrap();
    let stale = folder.path().join("plots/stale.svg");
    std::fs::write(&stale, "<svg/>").unwrap();
    let error = format!("{:#}", report::check(folder.path()).unwrap_err());
    assert!(error.contains("stale.svg"), "{error}");
    report::write_all(folder.path()).unwrap();
    assert!(!stale.exists());
}

#[test]
fn figures_of_two_machines_are_not_put_into_one_report() {
    let mut other = measured("b", &[(1.0, 1.0)]);
    other.machine.cpu = "Another CPU".into();
    let rows = [measured("a", &[(1.0, 1.0)]), other];
    let error = format!("{:#}", report::files(&rows).unwrap_err());
    assert!(error.contains("Another CPU"), "{error}");
}

#[test]
fn numbers_have_three_digits_that_count() {
    for (value, text) in [
        (0.0, "0"),
        (0.001_234, "1.23e-3"),
        (0.97551, "0.976"),
        (1.2349, "1.23"),
        (12.349, "12.3"),
        (1_234_567.4, "1,234,567"),
        (-1234.0, "-1,234"),
        (999.0, "999"),
    ] {
        assert_eq!(report::number(value), text);
    }
}

/// The texts of a picture, read as strictly as a browser reads it.
fn texts(svg: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(svg).unwrap();
    document
        .descendants()
        .filter(|node| node.has_tag_name("text"))
        .map(|node| {
            node.descendants()
                .filter_map(|inner| inner.text().filter(|_| inner.is_text()))
                .collect()
        })
        .collect()
}

#[test]
fn bars_show_every_ratio_with_its_mark_and_range() {
    let mut strange = measured("strange", &[(0.5, 1.0), (0.6, 1.0)]);
    strange.plan.title = "a < b & \"c\"".into();
    let rows = [strange, measured("shaken", &[(12.0, 1.0), (1.0, 2.0)])];
    let files = report::files(&rows).unwrap();
    let (_, bars) = files
        .iter()
        .find(|(name, _)| name == "plots/throughput.svg")
        .unwrap();
    let texts = texts(bars);
    for expected in [
        "a < b & \"c\", ringwall against bare l2fwd",
        "0.550 (0.500 to 0.600)",
        "≈ 6.25 (0.500 to 12.0)",
        "2 virtual CPUs Imaginary CPU, 8 GiB of memory, Linux 6.18.0, release build",
    ] {
        assert!(texts.iter().any(|text| text == expected), "{expected}: {texts:?}");
    }
    assert_eq!(
        bars.matches("<rect fill=\"url(#hatch)\"").count(),
        2,
        "one bar, and the legend"
    );
    assert_eq!(report::files(&rows).unwrap(), files);
}

#[test]
fn curves_need_two_places_and_have_a_point_for_each_party_at_each() {
    let at = |id: &str, flows: f64| {
        let mut row = measured(id, &[(0.5, 1.0), (0.6, 1.0)]);
        row.plan.parameters = [("flows".to_owned(), flows)].into();
        row
    };
    let drawn = |rows: &[Row]| {
        let files = report::files(rows).unwrap();
        let file = files
            .into_iter()
            .find(|(name, _)| name == "plots/throughput-by-flows.svg");
        file.map(|(_, svg)| svg)
    };
    assert_eq!(drawn(&[at("a", 1000.0)]), None);
    let svg = drawn(&[at("a", 1000.0), at("b", 1e6)]).unwrap();
    assert_eq!(
        svg.matches("<title>ringwall, 1,000,000: 0.550 Mpps</title>")
            .count(),
        1
    );
    assert_eq!(
        svg.matches("<title>bare l2fwd, 1,000: 1.00 Mpps</title>").count(),
        1
    );
    assert!(texts(&svg).contains(&"1,000,000".to_owned()));
}

#[test]
fn numbers_of_axes_are_round_and_few() {
    use super::plot::{Axis, Scale};
    for (scale, least, most) in [
        (Scale::Logarithm, 0.76, 1.3),
        (Scale::Logarithm, 0.01, 40.0),
        (Scale::Logarithm, 1e-3, 1e6),
        (Scale::Linear, 0.0, 0.93),
        (Scale::Linear, 0.0, 7_000_000.0),
    ] {
        let axis = Axis {
            scale,
            least,
            most,
            from: 0.0,
            to: 100.0,
        };
        let ticks = axis.ticks();
        assert!((2..=12).contains(&ticks.len()), "{ticks:?}");
        assert!(
            ticks
                .iter()
                .all(|tick| (least..=most).contains(tick) && tick.to_string().len() < 8),
            "{ticks:?}"
        );
        assert!(axis.at(least).abs() < 1e-9 && (axis.at(most) - 100.0).abs() < 1e-9);
    }
}

#[test]
fn rows_stand_in_the_order_of_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    for id in ["flows-1000000", "flows-250000", "flows-1000", "a"] {
        measured(id, &[(1.0, 1.0)]).save(folder.path()).unwrap();
    }
    let ids: Vec<String> = load_all(folder.path())
        .unwrap()
        .into_iter()
        .map(|row| row.plan.id)
        .collect();
    assert_eq!(ids, ["a", "flows-1000", "flows-250000", "flows-1000000"]);
}

/// Every figure of the committed report, from the committed samples.
#[test]
fn the_committed_report_is_what_its_samples_say() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    if !folder.join("REPORT.md").exists() && !folder.join("results").exists() {
        eprintln!("SKIPPED: this checkout has neither a report nor samples");
        return;
    }
    report::check(folder).unwrap();
}
