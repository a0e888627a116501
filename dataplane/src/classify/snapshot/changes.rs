//! Which answers of a snapshot can differ from those of an older one, for incremental consumers. Cold.
//!
//! Found by comparing the tables themselves, chunk by chunk: what two snapshots share is passed over by pointer. A
//! record that the older one did not have counts for nothing by itself, since only a record that differs can lead to it.

use hashbrown::HashSet;

use super::Snapshot;
use crate::{
    addr::Addr,
    classify::{
        Identity,
        bucket::Bucket,
        image::Tables,
        layout::{
            CLASSES_PER_PAGE, Decision, MAX_REACH, PROVENANCE_RULE, PageRecord, SAME_FOR_ALL, TILE_PAGES,
            TILE_ROWS, page_slot, whole_cell_decision,
        },
        table::{Record, Table},
    },
};

/// What can differ. Everything that depends on none of these is as before.
#[derive(Clone, Debug, Default)]
pub struct SnapshotChanges {
    /// Addresses whose search among the hosts may end elsewhere.
    pub hosts: Vec<Addr>,
    /// What identities were whose records differ.
    pub identities: Vec<Identity>,
    /// Whether the ranges of addresses may be others.
    pub ranges: bool,
    /// Numbers of endpoints that are others now, or have another name.
    pub endpoints: Vec<u32>,
    /// Numbers of endpoints, then or now, whose search by name may end elsewhere.
    pub names: Vec<u32>,
    /// Whether a node that was there has another name.
    pub nodes: bool,
    /// Rows (from 1) and the first of 64 classes each, whose cells may have another port map or one that decides
    /// otherwise.
    pub pages: Vec<(u32, u32)>,
    /// Port maps, and what stands in their place, that decide otherwise or name other reasons.
    pub port_maps: HashSet<u32>,
    /// Rows (from 1) whose isolating policies, or whose rows for the own node, may be others.
    pub isolating: Vec<u32>,
    /// Provenances that name others.
    pub provenance: HashSet<u32>,
}

impl Snapshot {
    /// What can differ from an older snapshot; None where the tables are laid out anew, so that all of it can.
    pub fn changes_since(&self, older: &Self) -> Option<SnapshotChanges> {
        let (head, was) = (&self.image.parts.head, &older.image.parts.head);
        let (tables, old) = (&self.image.parts.tables, &older.image.parts.tables);
        let anew = head.seed != was.seed
            || tables.hosts_v4.len() != old.hosts_v4.len()
            || tables.hosts_v6.len() != old.hosts_v6.len()
            || tables.names.len() != old.names.len()
            || head.classes < was.classes
            || head.rows < was.rows
            || shrank(tables, old);
        if anew {
            return None;
        }
        let strings = self.changed_strings(older);
        let provenance = self.changed_provenance(older, &strings);
        let port_maps = self.changed_port_maps(older, &provenance);
        let mut changes = SnapshotChanges {
            identities: differing_records(&tables.identities, &old.identities)
                .into_iter()
                .map(|index| older.identity(index as u32))
                .collect(),
            ranges: tables.trie_v4.len() != old.trie_v4.len()
                || tables.trie_v6.len() != old.trie_v6.len()
                || !differing_records(&tables.trie_v4, &old.trie_v4).is_empty()
                || !differing_records(&tables.trie_v6, &old.trie_v6).is_empty(),
            endpoints: self.changed_endpoints(older, &strings),
            nodes: !differing_records(&tables.nodes, &old.nodes).is_empty()
                || tables.nodes.iter().any(|name| strings.contains(name)),
            pages: self.changed_pages(older, &port_maps),
            isolating: self.changed_isolating(older, &provenance),
            port_maps,
            provenance,
            ..SnapshotChanges::default()
        };
        changed_hosts(&tables.hosts_v4, &old.hosts_v4, head.seed, &mut changes.hosts);
        changed_hosts(&tables.hosts_v6, &old.hosts_v6, head.seed, &mut changes.hosts);
        changes.hosts.sort_unstable();
        changes.hosts.dedup();
        self.changed_names(older, &mut changes.names);
        Some(changes)
    }

    /// Strings that say something else.
    fn changed_strings(&self, older: &Self) -> HashSet<u32> {
        let (tables, old) = (&self.image.parts.tables, &older.image.parts.tables);
        let mut found: HashSet<u32> = numbers(&tables.strings, &old.strings).collect();
        let bytes = differing_records(&tables.text, &old.text);
        if let (Some(first), Some(last)) = (bytes.first(), bytes.last()) {
            for (string, number) in tables.strings.iter().zip(0..) {
                let (from, to) = (
                    string.offset as usize,
                    string.offset as usize + string.length as usize,
                );
                if from > *last || to <= *first {
                    continue;
                }
                let at = bytes.partition_point(|byte| *byte < from);
                if bytes.get(at).is_some_and(|byte| *byte < to) {
                    found.insert(number);
                }
            }
        }
        found
    }

    fn changed_endpoints(&self, older: &Self, strings: &HashSet<u32>) -> Vec<u32> {
        let tables = &self.image.parts.tables;
        let mut found: Vec<u32> = numbers(&tables.endpoints, &older.image.parts.tables.endpoints).collect();
        if !strings.is_empty() {
            let named = tables.endpoints.iter().zip(0..);
            let named = named.filter(|(endpoint, _)| {
                strings.contains(&endpoint.namespace) || strings.contains(&endpoint.name)
            });
            found.extend(named.map(|(_, number)| number));
            found.sort_unstable();
            found.dedup();
        }
        found
    }

    fn changed_provenance(&self, older: &Self, strings: &HashSet<u32>) -> HashSet<u32> {
        let (tables, old) = (&self.image.parts.tables, &older.image.parts.tables);
        let mut policies: HashSet<u32> = numbers(&tables.policies, &old.policies).collect();
        if !strings.is_empty() {
            for (policy, number) in tables.policies.iter().zip(0..) {
                let names = [policy.tier, policy.kind, policy.namespace, policy.name];
                if names.iter().any(|name| strings.contains(name)) {
                    policies.insert(number);
                }
            }
        }
        let mut found: HashSet<u32> = numbers(&tables.provenance, &old.provenance).collect();
        let mut lists: HashSet<u32> = numbers(&tables.policy_lists, &old.policy_lists).collect();
        if policies.is_empty() && lists.is_empty() {
            return found;
        }
        let naming = tables.policy_lists.iter().zip(0..);
        lists.extend(
            naming
                .filter(|(policy, _)| policies.contains(*policy))
                .map(|(_, at)| at),
        );
        for (record, number) in tables.provenance.iter().zip(0..) {
            let touched = if record.kind == PROVENANCE_RULE {
                policies.contains(&record.first)
            } else {
                (record.first..record.first.saturating_add(record.second)).any(|at| lists.contains(&at))
            };
            if touched {
                found.insert(number);
            }
        }
        found
    }

    fn changed_port_maps(&self, older: &Self, provenance: &HashSet<u32>) -> HashSet<u32> {
        let (tables, old) = (&self.image.parts.tables, &older.image.parts.tables);
        let mut found: HashSet<u32> = numbers(&tables.port_maps, &old.port_maps).collect();
        let intervals: HashSet<u32> = numbers(&tables.intervals, &old.intervals).collect();
        if found.is_empty() && intervals.is_empty() && provenance.is_empty() {
            return found;
        }
        // What a port map decides that nests another changes with that one.
        let mut nesting: Vec<(u32, u32)> = Vec::new();
        for (map, number) in tables.port_maps.iter().zip(0..) {
            let [from, .., to] = map.starts;
            let mut touched = provenance.contains(&map.portless().1);
            for (_, _, decision, rule) in map.inline_ranges() {
                match decision {
                    Decision::NESTED => nesting.push((number, rule)),
                    _ => touched |= provenance.contains(&rule),
                }
            }
            for at in from..to {
                touched |= intervals.contains(&at);
                match tables.intervals.get(at as usize) {
                    Some(interval) if interval.decision == Decision::NESTED => {
                        nesting.push((number, interval.provenance));
                    }
                    Some(interval) => touched |= provenance.contains(&interval.provenance),
                    None => touched = true,
                }
            }
            if touched {
                found.insert(number);
            }
        }
        // Cells that decide themselves change with the rules that they name.
        if !provenance.is_empty() {
            let entries = tables.palettes.iter().filter(|entry| **entry & SAME_FOR_ALL != 0);
            found.extend(entries.filter(|entry| provenance.contains(&whole_cell_decision(**entry).1)));
        }
        let touched = nesting.into_iter().filter(|(_, nested)| found.contains(nested));
        let touched: Vec<u32> = touched.map(|(map, _)| map).collect();
        found.extend(touched);
        found
    }

    fn changed_pages(&self, older: &Self, port_maps: &HashSet<u32>) -> Vec<(u32, u32)> {
        let (head, was) = (&self.image.parts.head, &older.image.parts.head);
        let (tables, old) = (&self.image.parts.tables, &older.image.parts.tables);
        let mut patterns = vec![false; tables.patterns.len()];
        let changed_patterns = differing_records(&tables.patterns, &old.patterns);
        let mut palettes = differing_records(&tables.palettes, &old.palettes);
        if !port_maps.is_empty() {
            let cells = tables.palettes.iter().enumerate();
            palettes.extend(
                cells
                    .filter(|(_, map)| port_maps.contains(*map))
                    .map(|(at, _)| at),
            );
        }
        // First entries of palettes that may hold one of these.
        let mut first_entries = vec![false; tables.palettes.len()];
        for changed in &palettes {
            let first = changed.saturating_sub(CLASSES_PER_PAGE - 1);
            first_entries
                .iter_mut()
                .take(changed + 1)
                .skip(first)
                .for_each(|entry| *entry = true);
        }
        for changed in &changed_patterns {
            if let Some(pattern) = patterns.get_mut(*changed) {
                *pattern = true;
            }
        }
        let is_touched = |record: &PageRecord| {
            let marked = |marks: &[bool], at: u32| marks.get(at as usize).copied().unwrap_or(true);
            marked(&patterns, record.pattern) || marked(&first_entries, record.palette)
        };
        let pages = (was.classes as usize).div_ceil(CLASSES_PER_PAGE);
        let rows = was.rows as usize;
        if head.row_tiles == was.row_tiles {
            let mut slots = differing_records(&tables.row_pages, &old.row_pages);
            if !changed_patterns.is_empty() || !palettes.is_empty() {
                let records = tables.row_pages.iter().enumerate();
                slots.extend(
                    records
                        .filter(|(_, record)| is_touched(record))
                        .map(|(slot, _)| slot),
                );
                slots.sort_unstable();
                slots.dedup();
            }
            let places = slots.into_iter().map(|slot| {
                let (in_tile, tile) = (slot % (TILE_ROWS * TILE_PAGES), slot / (TILE_ROWS * TILE_PAGES));
                let row = tile % head.row_tiles as usize * TILE_ROWS + in_tile % TILE_ROWS;
                (
                    row,
                    tile / head.row_tiles as usize * TILE_PAGES + in_tile / TILE_ROWS,
                )
            });
            let places = places.filter(|(row, page)| *row < rows && *page < pages);
            return places.map(|(row, page)| row_and_class(row, page)).collect();
        }
        let mut found = Vec::new();
        for page in 0..pages {
            for row in 0..rows {
                let record = tables.row_pages.get(page_slot(row, page, head.row_tiles));
                let same = record == old.row_pages.get(page_slot(row, page, was.row_tiles));
                if !same || record.is_none_or(is_touched) {
                    found.push(row_and_class(row, page));
                }
            }
        }
        found
    }

    fn changed_isolating(&self, older: &Self, provenance: &HashSet<u32>) -> Vec<u32> {
        let tables = &self.image.parts.tables;
        let mut found: Vec<u32> = numbers(&tables.rows, &older.image.parts.tables.rows).collect();
        if !provenance.is_empty() {
            let rows = tables.rows.iter().zip(0..);
            found.extend(
                rows.filter(|(record, _)| provenance.contains(&record.isolating))
                    .map(|(_, row)| row),
            );
        }
        found.iter_mut().for_each(|row| *row += 1);
        found
    }

    fn changed_names(&self, older: &Self, into: &mut Vec<u32>) {
        // A search goes from its home to the next empty slot: what lies in the run around a slot can be concerned.
        let (new, old) = (&self.image.parts.tables.names, &older.image.parts.tables.names);
        for at in differing_records(new, old) {
            for table in [new, old] {
                let taken = |step: usize| {
                    let slot = table.get((at + step) % table.len())?;
                    slot.endpoint.checked_sub(1)
                };
                into.extend(taken(0));
                into.extend((1..table.len()).map_while(taken));
                into.extend((1..table.len()).map_while(|step| taken(table.len() - step)));
            }
        }
        into.sort_unstable();
        into.dedup();
    }
}

/// A lookup may read `reach` buckets from its home on: what lies in those can be found elsewhere now, or no more.
fn changed_hosts<B: Bucket>(new: &Table<B>, old: &Table<B>, seed: u64, into: &mut Vec<Addr>) {
    for at in differing_records(new, old) {
        for table in [new, old] {
            for step in 0..usize::from(MAX_REACH) {
                let hosts = table
                    .get((at + step) % table.len())
                    .into_iter()
                    .flat_map(B::hosts);
                let concerned = hosts.filter(|(key, _)| step == 0 || B::home(*key, seed, table.len()) == at);
                into.extend(concerned.map(|(key, _)| B::addr(key)));
            }
        }
    }
}

/// A row, counted from 1, and the first class of a page.
fn row_and_class(row: usize, page: usize) -> (u32, u32) {
    (row as u32 + 1, (page * CLASSES_PER_PAGE) as u32)
}

/// Whether a table has fewer records. Those of the ranges may: of these nothing is said but whether they are others.
fn shrank(tables: &Tables, old: &Tables) -> bool {
    let (mut tables, mut old) = (tables.clone(), old.clone());
    for tables in [&mut tables, &mut old] {
        tables.trie_v4 = Table::default();
        tables.trie_v6 = Table::default();
    }
    let mut sections = tables.sections().into_iter().zip(old.sections());
    sections.any(|(new, old)| new.records() < old.records())
}

/// Indices of records that both tables have and that are not the same.
fn differing_records<T: Record>(table: &Table<T>, older: &Table<T>) -> Vec<usize> {
    let mut found = Vec::new();
    table.differing(older, &mut found);
    found
}

fn numbers<T: Record>(table: &Table<T>, older: &Table<T>) -> impl Iterator<Item = u32> + use<T> {
    differing_records(table, older)
        .into_iter()
        .map(|index| index as u32)
}
