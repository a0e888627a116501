//! The matrix as a picture in SVG.
//!
//! What a cell means shows in its form, not in its colour alone: full, with ports as text, a small cross, a stroke. Every
//! cell and every name says in full what it is (`title`: shown under the pointer, read out by screen readers). Colours follow
//! the reader's preference for light or dark. Equal clusters give equal bytes.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{
    Caption,
    grid::{Cell, Grid, Group},
    letter,
};

/// Side of a cell, in pixels as all lengths here.
const CELL: usize = 30;
/// Between two namespaces.
const GAP: usize = 10;
/// Around everything.
const MARGIN: usize = 24;
/// Size of the names' letters, and how wide one is at most.
const LETTER: usize = 12;
const LETTER_WIDTH: f64 = 0.62 * LETTER as f64;
/// Longest name in letters; longer ones are cut.
const LONGEST: usize = 36;
/// Between two lines of the legend.
const LINE: usize = 20;
/// Height of title and summary.
const HEAD: usize = 76;
/// Digits of a port that fit into a cell.
const FITS: usize = 5;

const STYLE: &str = "\
.bg{fill:#fff}text{font:12px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#1f2328}\
.h{font-size:18px;font-weight:600}.m{fill:#656d76}.s{font-weight:600}.w{fill:#9a6700;font-weight:600}\
.a{fill:#1f7a5c}.n{fill:#f1f3f5}.p{fill:#fdeec4;stroke:#bf8700}.i{fill:none;stroke:#d0d7de}\
.x,.y{stroke:#b9c0c8;stroke-width:1.3;fill:none}.y{stroke-dasharray:3 2}\
.t,.t5{font:10px ui-monospace,'DejaVu Sans Mono',monospace;fill:#4d3800;text-anchor:middle}.t5{font-size:8px}\
.e{text-anchor:end}.c{text-anchor:middle;font-size:10px}.l{stroke:#d0d7de}\
g.r:hover>text{font-weight:700}g:hover>.a,g:hover>.n,g:hover>.p,g:hover>.i{stroke:#0969da;stroke-width:2}\
@media(prefers-color-scheme:dark){.bg{fill:#0d1117}text{fill:#e6edf3}.m{fill:#8d96a0}.w{fill:#e3b341}\
.a{fill:#3fb68b}.n{fill:#1a212b}.p{fill:#3b2e0b;stroke:#d29922}.i,.l{stroke:#3d444d}.x,.y{stroke:#59626d}\
.t,.t5{fill:#f2dc9b}}";

/// Where things are.
struct Layout {
    /// Left edges of the columns, which are also the upper edges of the rows, from the grid's corner.
    offsets: Vec<usize>,
    /// Side of the grid.
    side: usize,
    left: usize,
    top: usize,
    /// How far the last columns' slanted names reach beyond the grid.
    overhang: usize,
}

impl Layout {
    fn of(grid: &Grid) -> Self {
        let mut offsets = Vec::with_capacity(grid.groups.len());
        let mut next = 0;
        for (place, group) in grid.groups.iter().enumerate() {
            let before = place.checked_sub(1).and_then(|before| grid.groups.get(before));
            if before.is_some_and(|before| before.namespace != group.namespace) {
                next += GAP;
            }
            offsets.push(next);
            next += CELL;
        }
        let names = grid
            .groups
            .iter()
            .map(|group| text_width(&cut(&group.short_name())))
            .max()
            .unwrap_or(0);
        let spaces = grid
            .groups
            .iter()
            .map(|group| text_width(&cut(place_of(group))))
            .max()
            .unwrap_or(0);
        let full = grid
            .groups
            .iter()
            .map(|group| text_width(&column_name(group)))
            .max()
            .unwrap_or(0);
        // Columns' names are slanted by 45 degrees.
        let slanted = full * 71 / 100 + LETTER;
        Self {
            offsets,
            side: next,
            left: MARGIN + spaces + 16 + names + 36,
            top: HEAD + slanted + 14,
            overhang: slanted,
        }
    }
}

/// The picture.
pub(super) fn svg(grid: &Grid, caption: &Caption) -> String {
    let layout = Layout::of(grid);
    let legend = legend(grid, caption, layout.top + layout.side + 44);
    let summary = summary(grid, caption);
    let widest = summary
        .iter()
        .map(|line| text_width(line) + MARGIN)
        .max()
        .unwrap_or(0)
        .max(legend.width);
    let width = (layout.left + layout.side + layout.overhang).max(widest) + MARGIN;
    let height = legend.until + MARGIN;
    let mut out = String::new();
    // Writing to a string does not fail, here and below.
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" aria-labelledby=\"title summary\">\n\
         <title id=\"title\">Who can reach whom</title>\n<desc id=\"summary\">{}</desc>\n<style>{STYLE}</style>\n\
         <rect class=\"bg\" width=\"{width}\" height=\"{height}\"/>\n\
         <text class=\"h\" x=\"{MARGIN}\" y=\"32\">Who can reach whom</text>\n\
         <text class=\"m\" x=\"{MARGIN}\" y=\"52\">{}</text>\n<text class=\"m\" x=\"{MARGIN}\" y=\"70\">{}</text>\n",
        escaped(&summary.join(" ")),
        escaped(&summary[0]),
        escaped(&summary[1])
    );
    columns(&mut out, grid, &layout);
    rows(&mut out, grid, &layout);
    out.push_str(&legend.text);
    out.push_str("</svg>\n");
    out
}

/// Names above the columns and their numbers below.
fn columns(out: &mut String, grid: &Grid, layout: &Layout) {
    let bottom = layout.top + layout.side + 14;
    for ((group, offset), number) in grid.groups.iter().zip(&layout.offsets).zip(1..) {
        let x = layout.left + offset + CELL / 2;
        let y = layout.top - 8;
        let (space, name) = (cut(place_of(group)), cut(&group.short_name()));
        let _ = writeln!(
            out,
            "<g><title>to {}</title><text transform=\"translate({} {y}) rotate(-45)\"><tspan class=\"m\">{}/</tspan>{}</text>\
             <text class=\"m c\" x=\"{x}\" y=\"{bottom}\">{number}</text></g>",
            escaped(&group.long_name()),
            x + 4,
            escaped(&space),
            escaped(&name)
        );
    }
}

/// Names and numbers beside the rows, and the cells.
fn rows(out: &mut String, grid: &Grid, layout: &Layout) {
    let mut namespace = None;
    let corner = layout.top - 10;
    let _ = writeln!(
        out,
        "<text class=\"m e\" x=\"{}\" y=\"{corner}\">rows send, columns receive</text>",
        layout.left - 32
    );
    for (((group, offset), cells), number) in
        grid.groups.iter().zip(&layout.offsets).zip(&grid.cells).zip(1..)
    {
        let top = layout.top + offset;
        let y = top + CELL / 2 + LETTER / 3;
        out.push_str("<g class=\"r\">\n");
        if namespace != Some(place_of(group)) {
            namespace = Some(place_of(group));
            let rows = grid
                .groups
                .iter()
                .filter(|other| other.namespace == group.namespace)
                .count();
            let line = layout.left - 36;
            let _ = writeln!(
                out,
                "<text class=\"s\" x=\"{MARGIN}\" y=\"{y}\">{}</text>\
                 <path class=\"l\" d=\"M{line} {top}v{}\"/>",
                escaped(&cut(place_of(group))),
                rows * CELL
            );
        }
        let _ = writeln!(
            out,
            "<g><title>from {}</title><text class=\"e\" x=\"{}\" y=\"{y}\">{}</text></g>\
             <text class=\"m c\" x=\"{}\" y=\"{y}\">{number}</text>",
            escaped(&group.long_name()),
            layout.left - 42,
            escaped(&cut(&group.short_name())),
            layout.left - 16
        );
        for ((to, column), cell) in grid.groups.iter().zip(&layout.offsets).zip(cells) {
            let words = format!(
                "{} to {}: {}",
                column_name(group),
                column_name(to),
                grid.words(*cell)
            );
            draw(out, grid, *cell, layout.left + column, top, &words);
        }
        let _ = writeln!(
            out,
            "<text class=\"m c\" x=\"{}\" y=\"{y}\">{number}</text>\n</g>",
            layout.left + layout.side + 14
        );
    }
}

/// One cell, a pixel free on each side.
fn draw(out: &mut String, grid: &Grid, cell: Cell, x: usize, y: usize, words: &str) {
    let class = match cell {
        Cell::All => "a",
        Cell::Nothing => "n",
        Cell::Some(_) | Cell::Depends => "p",
        Cell::Itself | Cell::Apart => "i",
    };
    let side = CELL - 3;
    let _ = write!(
        out,
        "<g><title>{}</title><rect class=\"{class}\" x=\"{x}.5\" y=\"{y}.5\" width=\"{side}\" height=\"{side}\" rx=\"4\"/>",
        escaped(words)
    );
    let middle = (x + CELL / 2 - 1, y + CELL / 2 - 1);
    match cell {
        Cell::All => {}
        Cell::Nothing => {
            let _ = write!(
                out,
                "<path class=\"x\" d=\"M{} {}l6 6m0-6l-6 6\"/>",
                middle.0 - 3,
                middle.1 - 3
            );
        }
        Cell::Itself => {
            let length = side - 12;
            let _ = write!(
                out,
                "<path class=\"x\" d=\"M{} {}l{length} {length}\"/>",
                x + 6,
                y + 6
            );
        }
        Cell::Apart => {
            let _ = write!(
                out,
                "<path class=\"y\" d=\"M{} {}h{}\"/>",
                x + 6,
                middle.1,
                side - 12
            );
        }
        Cell::Some(_) | Cell::Depends => {
            let lines = match cell {
                Cell::Some(mark) => short(grid, mark),
                _ => vec!["?".to_owned()],
            };
            let first = middle.1 + 4 - (lines.len() - 1) * 5;
            for (place, line) in lines.iter().enumerate() {
                let class = if line.len() < FITS { "t" } else { "t5" };
                let _ = write!(
                    out,
                    "<text class=\"{class}\" x=\"{}\" y=\"{}\">{}</text>",
                    middle.0,
                    first + place * 11,
                    escaped(line)
                );
            }
        }
    }
    out.push_str("</g>\n");
}

/// Ports that fit into a cell, one line each: one or two of TCP. Else the letter of the legend.
fn short(grid: &Grid, mark: usize) -> Vec<String> {
    let words = grid.marks.get(mark).map(Vec::as_slice).unwrap_or_default();
    let ports: Option<Vec<String>> = words
        .iter()
        .map(|word| {
            let port = word.strip_suffix("/TCP")?;
            (port.len() <= FITS && port.bytes().all(|byte| byte.is_ascii_digit())).then(|| port.to_owned())
        })
        .collect();
    ports
        .filter(|ports| ports.len() <= 2)
        .unwrap_or_else(|| vec![letter(mark)])
}

struct Legend {
    text: String,
    /// Where it ends, below and to the right.
    until: usize,
    width: usize,
}

fn legend(grid: &Grid, caption: &Caption, top: usize) -> Legend {
    let mut text = String::new();
    let mut y = top;
    let mut x = MARGIN;
    let used: BTreeSet<u8> = grid.cells.iter().flatten().map(|cell| form(*cell)).collect();
    let samples = [
        (Cell::All, caption.what.clone()),
        (Cell::Nothing, "nothing".to_owned()),
        (Cell::Depends, grid.words(Cell::Depends)),
        (Cell::Itself, "itself".to_owned()),
        (Cell::Apart, "no address family in common".to_owned()),
    ];
    for (cell, words) in samples
        .into_iter()
        .filter(|(cell, _)| used.contains(&form(*cell)))
    {
        draw(&mut text, grid, cell, x, y - CELL / 2 - 5, &words);
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{y}\">{}</text>",
            x + CELL + 6,
            escaped(&words)
        );
        x += CELL + 30 + text_width(&words);
    }
    let mut width = x;
    y += CELL + 6;
    let mut numbers = false;
    for mark in 0..grid.marks.len() {
        if short(grid, mark) != [letter(mark)] {
            numbers = true;
            continue;
        }
        for (place, line) in lines(&grid.words(Cell::Some(mark))).into_iter().enumerate() {
            if place == 0 {
                draw(
                    &mut text,
                    grid,
                    Cell::Some(mark),
                    MARGIN,
                    y - CELL / 2 - 5,
                    &grid.words(Cell::Some(mark)),
                );
            }
            let _ = writeln!(
                text,
                "<text x=\"{}\" y=\"{y}\">{}</text>",
                MARGIN + CELL + 6,
                escaped(&line)
            );
            width = width.max(MARGIN + CELL + 6 + text_width(&line));
            y += LINE;
        }
        y += CELL + 4 - LINE;
    }
    if numbers {
        let _ = writeln!(
            text,
            "<text class=\"m\" x=\"{MARGIN}\" y=\"{y}\">Numbers in cells are ports of TCP.</text>"
        );
        y += LINE;
    }
    if let Some(warning) = &caption.warning {
        let _ = writeln!(
            text,
            "<text class=\"w\" x=\"{MARGIN}\" y=\"{y}\">{}</text>",
            escaped(warning)
        );
        width = width.max(MARGIN + text_width(warning));
        y += LINE;
    }
    Legend {
        text,
        until: y - LINE + 4,
        width,
    }
}

/// The form that a cell has.
fn form(cell: Cell) -> u8 {
    match cell {
        Cell::All => 0,
        Cell::Nothing => 1,
        Cell::Itself => 2,
        Cell::Apart => 3,
        Cell::Some(_) => 4,
        Cell::Depends => 5,
    }
}

/// Words in lines of a length that can be read.
fn lines(words: &str) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in words.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + word.chars().count() < 100 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn summary(grid: &Grid, caption: &Caption) -> [String; 2] {
    let count = |wanted: fn(&Cell) -> bool| grid.cells.iter().flatten().filter(|cell| wanted(cell)).count();
    let all = count(|cell| *cell == Cell::All);
    let some = count(|cell| matches!(cell, Cell::Some(_)));
    let nothing = count(|cell| *cell == Cell::Nothing);
    let depends = count(|cell| *cell == Cell::Depends);
    let unsaid = match depends {
        0 => String::new(),
        some => format!(" {some} depend on addresses that pods will have."),
    };
    let namespaces: BTreeSet<&str> = grid.groups.iter().map(|group| group.namespace.as_str()).collect();
    let outside = usize::from(namespaces.contains(""));
    [
        format!(
            "{} endpoints in {} rows and {} namespaces.",
            grid.groups.iter().map(|group| group.members.len()).sum::<usize>(),
            grid.groups.len(),
            namespaces.len() - outside
        ),
        format!(
            "Of {} pairs of rows, {all} are open to {}, {some} in part, {nothing} closed.{unsaid}",
            all + some + nothing + depends,
            caption.what
        ),
    ]
}

/// How wide a text is at most.
fn text_width(text: &str) -> usize {
    (text.chars().count() as f64 * LETTER_WIDTH) as usize
}

fn place_of(group: &Group) -> &str {
    if group.namespace.is_empty() {
        "outside"
    } else {
        &group.namespace
    }
}

fn column_name(group: &Group) -> String {
    format!("{}/{}", cut(place_of(group)), cut(&group.short_name()))
}

fn cut(name: &str) -> String {
    if name.chars().count() <= LONGEST {
        return name.to_owned();
    }
    let mut short: String = name.chars().take(LONGEST - 1).collect();
    short.push('\u{2026}');
    short
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Not allowed in XML, whatever the name is.
            other if other.is_control() => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}
