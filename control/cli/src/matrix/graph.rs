//! The matrix as a graph in Graphviz's language: a cluster for each namespace, a node for each row, an arrow where
//! something may go.
//!
//! Arrows that say the same are drawn once: what everyone may send is written into the node; what every row of a
//! namespace may send, and what every row of one may be sent, begins or ends at the frame of the namespace; what two may send
//! each other has two heads.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{
    Caption,
    grid::{Cell, Grid},
};

/// One end of an arrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// A whole namespace, by number.
    Space(usize),
    /// One group, by number.
    Group(usize),
}

struct Graph<'a> {
    grid: &'a Grid,
    spaces: Vec<&'a str>,
    /// By group, its namespace's number.
    home: Vec<usize>,
    /// What every other group may send to a group.
    from_everyone: BTreeMap<usize, String>,
    /// What the groups of a namespace may send each other.
    among: BTreeMap<usize, String>,
    arrows: BTreeMap<(End, End), String>,
}

/// The graph.
pub(super) fn dot(grid: &Grid, caption: &Caption) -> String {
    let graph = Graph::of(grid);
    let mut out = String::new();
    let mut title = format!(
        "Who can reach whom\nThick arrows: {}. A second border: everyone may.",
        caption.what
    );
    if let Some(warning) = &caption.warning {
        let _ = write!(title, "\n{warning}");
    }
    // Writing to a string does not fail, here and below.
    let _ = write!(
        out,
        "digraph ringwall {{\n  label={};\n  labelloc=t;\n  compound=true;\n  rankdir=LR;\n  ranksep=0.9;\n  fontname=\"sans-serif\";\n  \
         node [shape=box, style=\"rounded,filled\", fillcolor=\"#ffffff\", fontname=\"sans-serif\", fontsize=11];\n  \
         edge [fontname=\"sans-serif\", fontsize=9, color=\"#57606a\"];\n",
        quoted(&title)
    );
    for (number, space) in graph.spaces.iter().enumerate() {
        graph.space(&mut out, number, space);
    }
    graph.draw_arrows(&mut out);
    out.push_str("}\n");
    out
}

impl<'a> Graph<'a> {
    fn of(grid: &'a Grid) -> Self {
        let mut spaces: Vec<&str> = Vec::new();
        let mut home = Vec::with_capacity(grid.groups.len());
        for group in &grid.groups {
            if spaces.last() != Some(&group.namespace.as_str()) {
                spaces.push(&group.namespace);
            }
            home.push(spaces.len() - 1);
        }
        let mut graph = Self {
            grid,
            spaces,
            home,
            from_everyone: BTreeMap::new(),
            among: BTreeMap::new(),
            arrows: BTreeMap::new(),
        };
        graph.find_common();
        graph.find_arrows();
        graph.join_targets();
        graph
    }

    fn groups_of(&self, space: usize) -> Vec<usize> {
        (0..self.home.len())
            .filter(|group| self.home[*group] == space)
            .collect()
    }

    /// What may go from one group to another; None for nothing.
    fn words(&self, src: usize, dst: usize) -> Option<String> {
        match self.grid.cells[src][dst] {
            Cell::All => Some("all".to_owned()),
            some @ Cell::Some(_) => Some(self.grid.words(some)),
            Cell::Depends => Some("all?".to_owned()),
            Cell::Nothing | Cell::Itself | Cell::Apart => None,
        }
    }

    /// What is the same for all of some pairs, of which there are at least two.
    fn common(&self, pairs: impl Iterator<Item = (usize, usize)>) -> Option<String> {
        let mut words: Vec<Option<String>> = pairs.map(|(src, dst)| self.words(src, dst)).collect();
        let first = words.pop()??;
        (!words.is_empty() && words.iter().all(|other| other.as_ref() == Some(&first))).then_some(first)
    }

    fn find_common(&mut self) {
        let groups = 0..self.grid.groups.len();
        for dst in groups.clone() {
            let sources = groups.clone().filter(|src| *src != dst).map(|src| (src, dst));
            if let Some(words) = self.common(sources) {
                self.from_everyone.insert(dst, words);
            }
        }
        for space in 0..self.spaces.len() {
            let members = self.groups_of(space);
            let pairs = members
                .iter()
                .flat_map(|src| members.iter().map(move |dst| (*src, *dst)))
                .filter(|(src, dst)| src != dst);
            if let Some(words) = self.common(pairs) {
                self.among.insert(space, words);
            }
        }
    }

    fn find_arrows(&mut self) {
        for dst in 0..self.grid.groups.len() {
            if self.from_everyone.contains_key(&dst) {
                continue;
            }
            for space in 0..self.spaces.len() {
                let own = space == self.home[dst];
                if own && self.among.contains_key(&space) {
                    continue;
                }
                let sources: Vec<usize> = self
                    .groups_of(space)
                    .into_iter()
                    .filter(|src| *src != dst)
                    .collect();
                // Not from the frame that the arrow ends in.
                if let Some(words) = self
                    .common(sources.iter().map(|src| (*src, dst)))
                    .filter(|_| !own)
                {
                    self.arrows.insert((End::Space(space), End::Group(dst)), words);
                    continue;
                }
                for src in sources {
                    if let Some(words) = self.words(src, dst) {
                        self.arrows.insert((End::Group(src), End::Group(dst)), words);
                    }
                }
            }
        }
    }

    /// Where something may go to every group of a namespace, one arrow to its frame.
    fn join_targets(&mut self) {
        let sources: BTreeSet<End> = self.arrows.keys().map(|(src, _)| *src).collect();
        for src in sources {
            for space in 0..self.spaces.len() {
                let inside = match src {
                    End::Space(it) => it == space,
                    End::Group(group) => self.home[group] == space,
                };
                let targets = self.groups_of(space);
                if inside || targets.len() < 2 {
                    continue;
                }
                let words: BTreeSet<Option<&String>> = targets
                    .iter()
                    .map(|dst| self.arrows.get(&(src, End::Group(*dst))))
                    .collect();
                let only = words
                    .first()
                    .copied()
                    .flatten()
                    .filter(|_| words.len() == 1)
                    .cloned();
                if let Some(words) = only {
                    for dst in targets {
                        self.arrows.remove(&(src, End::Group(dst)));
                    }
                    self.arrows.insert((src, End::Space(space)), words);
                }
            }
        }
    }

    fn space(&self, out: &mut String, number: usize, space: &str) {
        let mut label = if space.is_empty() {
            "outside".to_owned()
        } else {
            space.to_owned()
        };
        if let Some(words) = self.among.get(&number) {
            let _ = write!(label, "\n(among themselves: {words})");
        }
        let _ = write!(
            out,
            "  subgraph cluster_{number} {{\n    label={};\n    style=\"rounded,filled\";\n    fillcolor=\"#f6f8fa\";\n    \
             color=\"#8c959f\";\n    fontsize=13;\n    labeljust=l;\n",
            quoted(&label)
        );
        for group in self.groups_of(number) {
            let of = &self.grid.groups[group];
            let mut label = of.short_name();
            let mut more = format!("tooltip={}", quoted(&of.long_name()));
            if let Some(words) = self.from_everyone.get(&group) {
                let _ = write!(label, "\nfrom everyone: {words}");
                more.push_str(", peripheries=2");
            }
            let _ = writeln!(out, "    n{group} [label={}, {more}];", quoted(&label));
        }
        out.push_str("  }\n");
    }

    fn draw_arrows(&self, out: &mut String) {
        for ((src, dst), words) in &self.arrows {
            let back = self.arrows.get(&(*dst, *src)) == Some(words);
            if back && dst < src {
                continue;
            }
            let mut more = if words == "all" {
                "penwidth=2".to_owned()
            } else {
                format!("label={}", quoted(words))
            };
            if back {
                more.push_str(", dir=both");
            }
            let node = |end: &End| match end {
                End::Group(group) => *group,
                // Somebody there: the arrow is cut at the frame.
                End::Space(space) => self.groups_of(*space).first().copied().unwrap_or_default(),
            };
            for (end, which) in [(src, "ltail"), (dst, "lhead")] {
                if let End::Space(space) = end {
                    let _ = write!(more, ", {which}=cluster_{space}");
                }
            }
            let _ = writeln!(out, "  n{} -> n{} [{more}];", node(src), node(dst));
        }
    }
}

/// A string of the language; a line break stays one.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            other if other.is_control() => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}
