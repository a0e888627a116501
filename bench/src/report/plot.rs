//! Pictures of the report in SVG: bars of ratios, and curves.
//!
//! Written by hand, like `matrix --svg`: a plotting crate sets each element's colour, and could neither follow the reader's
//! preference for light or dark nor hatch what is unsteady; what is needed of axes are the few lines below. Equal samples
//! give equal bytes.

use std::fmt::Write as _;

use super::number;
use crate::samples::{Better, Outcome, Row, STEADY, Section, Spread, Target};

/// Width of every picture, in pixels as all lengths here.
const WIDTH: f64 = 920.0;
const MARGIN: f64 = 24.0;
/// Height of title and subtitle.
const HEAD: f64 = 66.0;
/// Widest a letter of 12 pixels gets on average, generous for every system's font.
const LETTER: f64 = 6.6;
/// Height of one bar with its title.
const BAR_ROW: f64 = 44.0;
const BAR: f64 = 14.0;
/// Space right of the bars for their figures.
const FIGURES: f64 = 210.0;
/// Height of the area of curves.
const CURVE_HEIGHT: f64 = 320.0;
/// Space left of curves for the numbers of their axis.
const AXIS: f64 = 70.0;
const LINE: f64 = 20.0;
/// Series of a picture at most: as many as can be told apart. The tables have all.
const SERIES: usize = 8;

const STYLE: &str = "\
.bg{fill:#fff}text{font:12px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#1f2328}\
.h{font-size:18px;font-weight:600}.m{fill:#656d76}.s{font-weight:600}.e{text-anchor:end}.c{text-anchor:middle}\
.grid{stroke:#d8dee4}.one{stroke:#1f2328;stroke-width:1.5}.whisker{stroke:#1f2328;stroke-width:1.3;fill:none}\
.goal{stroke:#8250df;stroke-width:2.5}.good{fill:#1f7a5c}.bad{fill:#bc4c00}.hatch{stroke:#fff;stroke-width:3}\
.k0{stroke:#0969da;fill:#0969da}.k1{stroke:#bc4c00;fill:#bc4c00}.k2{stroke:#1f7a5c;fill:#1f7a5c}.k3{stroke:#8250df;fill:#8250df}\
.k4{stroke:#bf3989;fill:#bf3989}.k5{stroke:#7d6400;fill:#7d6400}.k6{stroke:#57606a;fill:#57606a}.k7{stroke:#1b7c83;fill:#1b7c83}\
.line{fill:none;stroke-width:2}.thin{fill:none;stroke-width:1.2}\
@media(prefers-color-scheme:dark){.bg{fill:#0d1117}text{fill:#e6edf3}.m{fill:#8d96a0}.grid{stroke:#30363d}\
.one,.whisker{stroke:#e6edf3}.goal{stroke:#bc8cff}.good{fill:#3fb68b}.bad{fill:#f0883e}.hatch{stroke:#0d1117}\
.k0{stroke:#58a6ff;fill:#58a6ff}.k1{stroke:#f0883e;fill:#f0883e}.k2{stroke:#3fb68b;fill:#3fb68b}.k3{stroke:#bc8cff;fill:#bc8cff}\
.k4{stroke:#ff7bc0;fill:#ff7bc0}.k5{stroke:#e3b341;fill:#e3b341}.k6{stroke:#9aa4ae;fill:#9aa4ae}.k7{stroke:#56d4dd;fill:#56d4dd}\
.line,.thin{fill:none}}";

/// Bars of a section's ratios around 1, with the range as a whisker; None where no row of it has a control.
pub(super) fn ratios(title: &str, rows: &[&Row], machine: &str) -> Option<String> {
    let bars: Vec<_> = rows
        .iter()
        .filter_map(|row| Some((*row, row.ratios()?)))
        .collect();
    if bars.is_empty() {
        return None;
    }
    let goal = |row: &Row| match row.plan.target {
        Some(Target::Ratio(bound)) => Some(bound),
        _ => None,
    };
    let reach = Spread::of(
        bars.iter()
            .flat_map(|(row, ratios)| [Some(ratios.ratio.least), Some(ratios.ratio.most), goal(row)])
            .flatten()
            .filter(|value| *value > 0.0)
            .chain([0.8, 1.25]),
    )?;
    let axis = Axis {
        scale: Scale::Logarithm,
        least: reach.least / 1.05,
        most: reach.most * 1.05,
        from: MARGIN,
        to: WIDTH - MARGIN - FIGURES,
    };
    let bottom = HEAD + 24.0 + BAR_ROW * bars.len() as f64;
    let mut svg = Picture::begin(
        title,
        "Subject divided by control of the same round: median, and the range over rounds as a whisker.",
        bottom + 78.0,
    );
    for tick in axis.ticks() {
        let x = axis.at(tick);
        let class = if tick == 1.0 { "one" } else { "grid" };
        svg.line(class, (x, HEAD + 18.0), (x, bottom));
        svg.text("c m", (x, HEAD + 12.0), &tick_label(tick));
    }
    for (index, (row, ratios)) in bars.iter().enumerate() {
        let top = HEAD + 24.0 + BAR_ROW * index as f64;
        let (subject, control) = parties(row);
        let direction = match row.plan.better {
            Better::Higher => "",
            Better::Lower => "; less is better",
        };
        let of = format!(", {subject} against {control}{direction}");
        let room = ((WIDTH - 2.0 * MARGIN) / LETTER) as usize;
        let name = cut(&row.plan.title, room.saturating_sub(of.chars().count()));
        svg.open_group(&format!("{}{of}: {}", row.plan.title, figure(row)));
        // A background, so that no line of the grid crosses the letters.
        svg.rect(
            "bg",
            (MARGIN, top + 1.0),
            ((name.chars().count() + of.chars().count()) as f64 * LETTER, 17.0),
        );
        svg.title_and_rest((MARGIN, top + 14.0), &name, &of);
        let (one, value) = (axis.at(1.0), axis.at(ratios.ratio.median));
        let good = match row.plan.better {
            Better::Higher => ratios.ratio.median >= 1.0,
            Better::Lower => ratios.ratio.median <= 1.0,
        };
        let (corner, size) = ((one.min(value), top + 20.0), ((value - one).abs().max(1.5), BAR));
        svg.rect(if good { "good" } else { "bad" }, corner, size);
        if ratios.is_unsteady() {
            svg.hatch(corner, size);
        }
        let middle = top + 20.0 + BAR / 2.0;
        let (least, most) = (axis.at(ratios.ratio.least), axis.at(ratios.ratio.most));
        svg.whisker(((least, middle), (most, middle)), 4.0);
        if let Some(bound) = goal(row) {
            let x = axis.at(bound);
            svg.line("goal", (x, top + 17.0), (x, top + 23.0 + BAR));
        }
        svg.text("s", (axis.to + 12.0, middle + 4.0), &figure(row));
        svg.close_group();
    }
    let legend = bottom + 22.0;
    let mut x = MARGIN;
    for (class, text) in [
        ("good", "better than the control"),
        ("bad", "worse than the control"),
    ] {
        svg.rect(class, (x, legend - 10.0), (14.0, 12.0));
        svg.text("", (x + 20.0, legend), text);
        x += 40.0 + text.len() as f64 * LETTER;
    }
    svg.line("goal", (x + 6.0, legend - 12.0), (x + 6.0, legend + 3.0));
    svg.text("", (x + 16.0, legend), "target");
    x += 70.0;
    svg.rect("good", (x, legend - 10.0), (28.0, 12.0));
    svg.hatch((x, legend - 10.0), (28.0, 12.0));
    svg.text(
        "",
        (x + 34.0, legend),
        &format!(
            "≈ control moved by more than {:.0} %, or one round",
            STEADY * 100.0
        ),
    );
    Some(svg.end(machine))
}

/// Rows of a section that differ by one number.
pub(super) struct Curves {
    /// Name of the file, without its ending
    pub(super) name: &'static str,
    title: &'static str,
    pub(super) section: Section,
    /// Name of the number in [`crate::samples::Plan::parameters`]
    parameter: &'static str,
    x: &'static str,
    unit: &'static str,
    scale: Scale,
}

/// Every picture of curves.
pub(super) const CURVES: [Curves; 3] = [
    Curves {
        name: "throughput-by-flows",
        title: "Throughput by number of flows",
        section: Section::Throughput,
        parameter: "flows",
        x: "flows",
        unit: "Mpps",
        scale: Scale::Linear,
    },
    Curves {
        name: "memory-by-flows",
        title: "Time per packet in memory by number of flows",
        section: Section::Memory,
        parameter: "flows",
        x: "flows",
        unit: "ns/packet",
        scale: Scale::Linear,
    },
    Curves {
        name: "latency-percentiles",
        title: "Latency by percentile",
        section: Section::Latency,
        parameter: "percentile",
        x: "percentile",
        unit: "us",
        scale: Scale::Logarithm,
    },
];

/// Readings of one party at one place of a curve.
struct Point {
    x: f64,
    y: Spread,
}

/// A line of a picture.
struct Series {
    name: String,
    points: Vec<Point>,
    unsteady: bool,
}

/// The curves that some rows give; None where no party has two points.
pub(super) fn curves(spec: &Curves, rows: &[&Row], machine: &str) -> Option<String> {
    let series = series(spec, rows);
    let points = || series.iter().flat_map(|series| &series.points);
    let mut places: Vec<f64> = points().map(|point| point.x).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let height = Spread::of(points().flat_map(|point| [point.y.least, point.y.most]))?;
    let (top, bottom) = (HEAD + 14.0, HEAD + 14.0 + CURVE_HEIGHT);
    let vertical = Axis {
        scale: spec.scale,
        least: match spec.scale {
            Scale::Linear => 0.0,
            Scale::Logarithm => height.least / 1.2,
        },
        most: height.most * 1.1,
        from: bottom,
        to: top,
    };
    // Places are named, and stand at equal distances: flows grow by factors, percentiles by nines.
    let (left, right) = (MARGIN + AXIS, WIDTH - MARGIN);
    let at = |x: f64| {
        let index = places.iter().position(|place| *place == x).unwrap_or_default();
        left + (right - left) * (index as f64 + 0.5) / places.len() as f64
    };
    let columns = 2;
    let legend_rows = series.len().div_ceil(columns);
    let legend = bottom + 66.0;
    let mut svg = Picture::begin(
        spec.title,
        &format!(
            "{}, median and range over rounds{}.",
            spec.unit,
            if series.iter().any(|series| series.unsteady) {
                "; ≈: its control moved, or one round"
            } else {
                ""
            }
        ),
        legend + LINE * legend_rows as f64 + 34.0,
    );
    for tick in vertical.ticks() {
        let y = vertical.at(tick);
        svg.line("grid", (left, y), (right, y));
        svg.text("e m", (left - 8.0, y + 4.0), &tick_label(tick));
    }
    for place in &places {
        let label = match spec.parameter {
            "percentile" => format!("p{place}"),
            _ => number(*place),
        };
        svg.text("c m", (at(*place), bottom + 18.0), &label);
    }
    svg.text("c m", (f64::midpoint(left, right), bottom + 38.0), spec.x);
    for (index, line) in series.iter().enumerate() {
        // Beside each other, so that no whisker hides another.
        let shift = (index as f64 - (series.len() - 1) as f64 / 2.0) * 9.0;
        let place = |point: &Point| (at(point.x) + shift, vertical.at(point.y.median));
        let dots: Vec<(f64, f64)> = line.points.iter().map(place).collect();
        svg.open_group(&line.name);
        svg.polyline(index, &dots);
        for point in &line.points {
            let (x, y) = place(point);
            svg.range(index, x, (vertical.at(point.y.least), vertical.at(point.y.most)));
            svg.marker(
                index,
                (x, y),
                &format!(
                    "{}, {}: {} {}",
                    line.name,
                    number(point.x),
                    number(point.y.median),
                    spec.unit
                ),
            );
        }
        svg.close_group();
        let (column, row) = (index / legend_rows, index % legend_rows);
        let (x, y) = (
            MARGIN + column as f64 * (WIDTH / columns as f64),
            legend + LINE * row as f64,
        );
        svg.marker(index, (x + 6.0, y - 4.0), &line.name);
        let room = (WIDTH / columns as f64 - 50.0) / LETTER;
        let mark = if line.unsteady { "≈ " } else { "" };
        svg.text(
            "",
            (x + 18.0, y),
            &cut(&format!("{mark}{}", line.name), room as usize),
        );
    }
    Some(svg.end(machine))
}

/// By party with two points or more, in the order of the rows: the subjects, then the controls. A party that several rows have at one place
/// contributes all readings.
fn series(spec: &Curves, rows: &[&Row]) -> Vec<Series> {
    let mut readings: Vec<(String, f64, f64, bool)> = Vec::new();
    for control in [false, true] {
        for row in rows {
            let Some(x) = row.plan.parameters.get(spec.parameter) else {
                continue;
            };
            if row.plan.section != spec.section || row.plan.unit != spec.unit {
                continue;
            }
            let load = match row.plan.parameters.get("load") {
                Some(load) => format!(" at {load} of NDR"),
                None => String::new(),
            };
            let (subject, against) = parties(row);
            let unsteady = row.ratios().is_some_and(|ratios| ratios.is_unsteady());
            for round in row.rounds() {
                let (name, reading) = match (control, &round.control) {
                    (false, _) => (subject, &round.subject),
                    (true, Some(reading)) => (against, reading),
                    (true, None) => continue,
                };
                readings.push((format!("{name}{load}"), *x, reading.value, unsteady));
            }
        }
    }
    let mut names: Vec<&String> = Vec::new();
    for (name, ..) in &readings {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let series = names.iter().map(|name| {
        let own = || readings.iter().filter(|(other, ..)| other == *name);
        let mut places: Vec<f64> = own().map(|(_, x, ..)| *x).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let points = places.iter().filter_map(|x| {
            let y = Spread::of(own().filter(|(_, at, ..)| at == x).map(|(_, _, value, _)| *value))?;
            Some(Point { x: *x, y })
        });
        Series {
            name: (*name).clone(),
            points: points.collect(),
            unsteady: own().any(|(.., unsteady)| *unsteady),
        }
    });
    // One point is no curve.
    series
        .filter(|series| series.points.len() > 1)
        .take(SERIES)
        .collect()
}

/// Subject and control.
fn parties(row: &Row) -> (&str, &str) {
    match &row.outcome {
        Outcome::Measured { subject, control, .. } => (
            &subject.name,
            control.as_ref().map_or("", |control| control.name.as_str()),
        ),
        Outcome::Skipped(_) => ("", ""),
    }
}

/// `≈ 0.95 (0.91 to 0.97)`.
fn figure(row: &Row) -> String {
    let Some(ratios) = row.ratios() else {
        return String::new();
    };
    let mark = if ratios.is_unsteady() { "≈ " } else { "" };
    let Spread { median, least, most } = ratios.ratio;
    format!("{mark}{} ({} to {})", number(median), number(least), number(most))
}

/// At most so many letters.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[derive(Clone, Copy)]
pub(super) enum Scale {
    Linear,
    Logarithm,
}

/// From numbers to pixels.
pub(super) struct Axis {
    pub(super) scale: Scale,
    pub(super) least: f64,
    pub(super) most: f64,
    /// Pixels of the least and of the most
    pub(super) from: f64,
    pub(super) to: f64,
}

impl Axis {
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.least) / (self.most - self.least),
            Scale::Logarithm => (value.max(self.least) / self.least).ln() / (self.most / self.least).ln(),
        };
        self.from + (self.to - self.from) * share
    }

    /// Round numbers within, at most about ten.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let span = match self.scale {
            Scale::Linear => return steps(self.least, self.most, 6.0),
            Scale::Logarithm => self.most / self.least,
        };
        if span < 3.0 {
            return steps(self.least, self.most, 8.0);
        }
        let digits: &[f64] = if span < 2000.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let (first, last) = (self.least.log10().floor() as i32, self.most.log10().ceil() as i32);
        (first..=last)
            .flat_map(|power| {
                digits
                    .iter()
                    .map(move |digit| rounded(digit * 10_f64.powi(power)))
            })
            .filter(|tick| (self.least..=self.most).contains(tick))
            .collect()
    }
}

/// Multiples of a round step, about `count`.
fn steps(least: f64, most: f64, count: f64) -> Vec<f64> {
    let raw = (most - least) / count;
    let power = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|step| *step >= raw)
        .unwrap_or(raw);
    let (first, last) = ((least / step).ceil() as i64, (most / step).floor() as i64);
    (first..=last).map(|index| rounded(index as f64 * step)).collect()
}

/// As short as it can be: ticks are round.
fn tick_label(tick: f64) -> String {
    if tick.abs() >= 1000.0 {
        number(tick)
    } else {
        tick.to_string()
    }
}

/// Without the last digits' noise of binary fractions.
fn rounded(value: f64) -> f64 {
    format!("{value:.9e}").parse().unwrap_or(value)
}

/// An SVG in the making.
struct Picture {
    svg: String,
    height: f64,
}

// Writing to a string does not fail.
impl Picture {
    fn begin(title: &str, subtitle: &str, height: f64) -> Self {
        let mut svg = String::new();
        let _ = write!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" height=\"{height:.0}\" \
             role=\"img\">\n<title>{0}</title>\n<style>{STYLE}</style>\n<defs><pattern id=\"hatch\" width=\"7\" height=\"7\" \
             patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><line class=\"hatch\" x1=\"0\" y1=\"0\" x2=\"0\" \
             y2=\"7\"/></pattern></defs>\n<rect class=\"bg\" width=\"100%\" height=\"100%\"/>\n",
            escaped(title)
        );
        let mut picture = Self { svg, height };
        picture.text("h", (MARGIN, 32.0), title);
        picture.text("m", (MARGIN, 52.0), subtitle);
        picture
    }

    /// With the machine's line below everything.
    fn end(mut self, machine: &str) -> String {
        let room = ((WIDTH - 2.0 * MARGIN) / LETTER) as usize;
        self.text("m", (MARGIN, self.height - 14.0), &cut(machine, room));
        self.svg.push_str("</svg>\n");
        self.svg
    }

    fn text(&mut self, class: &str, (x, y): (f64, f64), text: &str) {
        let _ = writeln!(
            self.svg,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>",
            escaped(text)
        );
    }

    fn title_and_rest(&mut self, (x, y): (f64, f64), title: &str, rest: &str) {
        let _ = writeln!(
            self.svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\">{}<tspan class=\"m\">{}</tspan></text>",
            escaped(title),
            escaped(rest)
        );
    }

    fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let _ = writeln!(
            self.svg,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        );
    }

    fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        let _ = writeln!(
            self.svg,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        );
    }

    fn hatch(&mut self, (x, y): (f64, f64), (width, height): (f64, f64)) {
        let _ = writeln!(
            self.svg,
            "<rect fill=\"url(#hatch)\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        );
    }

    /// A horizontal line with ends.
    fn whisker(&mut self, ((from, y), (to, _)): ((f64, f64), (f64, f64)), half: f64) {
        let (above, below) = (y - half, y + half);
        let _ = writeln!(
            self.svg,
            "<path class=\"whisker\" d=\"M{from:.1} {above:.1}V{below:.1}M{from:.1} {y:.1}H{to:.1}M{to:.1} {above:.1}V{below:.1}\"/>"
        );
    }

    /// A vertical line with ends, of a series.
    fn range(&mut self, series: usize, x: f64, (from, to): (f64, f64)) {
        let (left, right) = (x - 3.0, x + 3.0);
        let _ = writeln!(
            self.svg,
            "<path class=\"k{series} thin\" d=\"M{left:.1} {from:.1}H{right:.1}M{x:.1} {from:.1}V{to:.1}M{left:.1} {to:.1}H{right:.1}\"/>"
        );
    }

    fn polyline(&mut self, series: usize, points: &[(f64, f64)]) {
        let dots: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            self.svg,
            "<polyline class=\"k{series} line\" points=\"{}\"/>",
            dots.join(" ")
        );
    }

    /// Series differ by form too, not by colour alone.
    fn marker(&mut self, series: usize, (x, y): (f64, f64), title: &str) {
        let form = match series % 4 {
            0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" class=\"k{series}\">"),
            1 => format!(
                "<path d=\"M{:.1} {:.1}h8v8h-8z\" class=\"k{series}\">",
                x - 4.0,
                y - 4.0
            ),
            2 => format!(
                "<path d=\"M{x:.1} {:.1}l5.5 9.5h-11z\" class=\"k{series}\">",
                y - 5.5
            ),
            _ => format!(
                "<path d=\"M{x:.1} {:.1}l5.5 5.5l-5.5 5.5l-5.5 -5.5z\" class=\"k{series}\">",
                y - 5.5
            ),
        };
        let end = if series.is_multiple_of(4) {
            "circle"
        } else {
            "path"
        };
        let _ = writeln!(self.svg, "{form}<title>{}</title></{end}>", escaped(title));
    }

    /// What follows says what it is, under the pointer and to screen readers.
    fn open_group(&mut self, title: &str) {
        let _ = writeln!(self.svg, "<g><title>{}</title>", escaped(title));
    }

    fn close_group(&mut self) {
        self.svg.push_str("</g>\n");
    }
}

/// For the text of an element.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
