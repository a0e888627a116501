//! Checks of what an image says: every index, offset and order, of all records or of those that a delta brought.
//!
//! Tables never get shorter by a delta, so what pointed somewhere before still does, and only what is new needs a look.
//! What an unchanged record means may change with the record that it points to; reads are safe whatever that is.

use super::{
    Identity, IdentityKind, ImageError, Snapshot,
    bucket::{self, Bucket},
    image::{ChangedChunks, knows_flags, table_error},
    layout::{
        CLASSES_PER_PAGE, Decision, ENDPOINT_NONE, INLINE_RANGES, MAX_REACH, NONE, OTHER_PROTOCOLS,
        PROVENANCE_ISOLATING, PROVENANCE_RULE, PortMapRecord, SAME_FOR_ALL, SECTIONS, Section, TRIE_CHILD,
        TrieNode, page_slots, whole_cell_decision,
    },
    snapshot::as_identity,
    table::Table,
};

/// What is wrong with a record, if anything.
type Check = Result<(), &'static str>;

/// The first thing that must hold and does not.
fn all(conditions: &[(bool, &'static str)]) -> Check {
    match conditions.iter().find(|(holds, _)| !holds) {
        Some((_, problem)) => Err(problem),
        None => Ok(()),
    }
}

impl Snapshot {
    /// Answers the snapshot if these records of every section are as they must be.
    pub(super) fn validated(self, records: &[ChangedChunks; SECTIONS]) -> Result<Self, ImageError> {
        self.check_head()?;
        let tables = &self.image.parts.tables;
        let check = |section: Section, table: &'static str, check: &dyn Fn(usize) -> Check| {
            for (from, to) in &records[section as usize] {
                for index in *from..*to {
                    check(index).map_err(|problem| table_error(table, index, problem))?;
                }
            }
            Ok(())
        };
        check(Section::StringTable, "string", &|index| self.check_string(index))?;
        check(Section::Policies, "policy", &|index| self.check_policy(index))?;
        check(Section::Nodes, "node", &|index| self.check_node(index))?;
        check(Section::PolicyLists, "policy list", &|index| {
            self.check_policy_list(index)
        })?;
        check(Section::Provenance, "provenance", &|index| {
            self.check_provenance(index)
        })?;
        check(Section::Endpoints, "endpoint", &|index| {
            self.check_endpoint(index)
        })?;
        check(Section::Names, "name", &|index| self.check_name(index))?;
        check(Section::Identities, "identity", &|index| {
            self.check_identity(index)
        })?;
        check(Section::HostsV4, "IPv4 host bucket", &|index| {
            self.check_bucket(&tables.hosts_v4, index)
        })?;
        check(Section::HostsV6, "IPv6 host bucket", &|index| {
            self.check_bucket(&tables.hosts_v6, index)
        })?;
        check(Section::TrieV4, "IPv4 trie", &|index| {
            self.check_node_of(&tables.trie_v4, index)
        })?;
        check(Section::TrieV6, "IPv6 trie", &|index| {
            self.check_node_of(&tables.trie_v6, index)
        })?;
        check(Section::Rows, "row", &|index| self.check_row(index))?;
        let parts: Vec<u8> = match records[Section::RowPages as usize].is_empty() {
            true => Vec::new(),
            false => tables
                .patterns
                .iter()
                .map(|pattern| pattern.parts.iter().max().copied().unwrap_or(0))
                .collect(),
        };
        check(Section::RowPages, "row page", &|index| {
            self.check_page(index, &parts)
        })?;
        check(Section::Patterns, "pattern", &|index| self.check_pattern(index))?;
        check(Section::Palettes, "palette", &|index| self.check_palette(index))?;
        check(Section::PortMaps, "port map", &|index| self.check_port_map(index))?;
        check(Section::Intervals, "interval", &|index| {
            self.check_interval(index)
        })?;
        Ok(self)
    }

    fn check_head(&self) -> Result<(), ImageError> {
        let (head, tables) = (&self.image.parts.head, &self.image.parts.tables);
        let rows = head.rows as usize;
        all(&[
            (knows_flags(head), "has flags that this build does not know"),
            (head.classes > 0, "has no peer classes"),
            (
                tables.rows.len() == rows
                    && rows <= head.row_tiles as usize * super::layout::TILE_ROWS
                    && tables.row_pages.len() == page_slots(head.classes, head.row_tiles),
                "has another number of rows or classes than the tables",
            ),
            (
                tables.trie_v4.len() > 0 && tables.trie_v6.len() > 0,
                "has no tries",
            ),
        ])
        .map_err(|problem| table_error("header", 0, problem))
    }

    fn has_string(&self, index: u32) -> bool {
        (index as usize) < self.image.parts.tables.strings.len()
    }

    fn has_identity(&self, index: u32) -> bool {
        (index as usize) < self.image.parts.tables.identities.len()
    }

    fn check_string(&self, index: usize) -> Check {
        all(&[(
            self.string(index as u32).is_some(),
            "leaves the text or is not UTF-8",
        )])
    }

    fn check_policy(&self, index: usize) -> Check {
        let Some(policy) = self.image.parts.tables.policies.get(index) else {
            return Ok(());
        };
        let names = [policy.tier, policy.kind, policy.namespace, policy.name];
        all(&[(
            names.into_iter().all(|name| self.has_string(name)),
            "names a string that does not exist",
        )])
    }

    fn check_node(&self, index: usize) -> Check {
        let node = self.image.parts.tables.nodes.get(index);
        all(&[(
            node.is_none_or(|name| *name == NONE || self.has_string(*name)),
            "names a string that does not exist",
        )])
    }

    fn check_policy_list(&self, index: usize) -> Check {
        let tables = &self.image.parts.tables;
        let policy = tables.policy_lists.get(index);
        all(&[(
            policy.is_none_or(|policy| (*policy as usize) < tables.policies.len()),
            "names a policy that does not exist",
        )])
    }

    fn check_provenance(&self, index: usize) -> Check {
        let tables = &self.image.parts.tables;
        let Some(record) = tables.provenance.get(index) else {
            return Ok(());
        };
        let inside = match record.kind {
            PROVENANCE_RULE => (record.first as usize) < tables.policies.len(),
            PROVENANCE_ISOLATING => {
                u64::from(record.first) + u64::from(record.second) <= tables.policy_lists.len() as u64
            }
            _ => return Err("is of an unknown kind"),
        };
        all(&[
            (inside, "names policies that do not exist"),
            (record.reserved == 0, "has bits that this build does not know"),
        ])
    }

    fn check_endpoint(&self, index: usize) -> Check {
        let tables = &self.image.parts.tables;
        let Some(record) = tables.endpoints.get(index) else {
            return Ok(());
        };
        if record.state == ENDPOINT_NONE {
            return Ok(());
        }
        let identity = tables.identities.get(record.identity as usize);
        let own = identity.is_some_and(|identity| {
            identity.kind != IdentityKind::Pod as u32 || identity.endpoint as usize == index
        });
        all(&[
            (
                self.has_string(record.namespace) && self.has_string(record.name),
                "names a string that does not exist",
            ),
            (identity.is_some(), "names an identity that does not exist"),
            (own, "has the identity of another"),
            (record.state < ENDPOINT_NONE, "is neither pod nor template"),
        ])
    }

    fn check_name(&self, index: usize) -> Check {
        let tables = &self.image.parts.tables;
        let slot = tables.names.get(index);
        all(&[(
            slot.is_none_or(|slot| slot.endpoint as usize <= tables.endpoints.len()),
            "is of an endpoint that does not exist",
        )])
    }

    fn check_identity(&self, index: usize) -> Check {
        let (head, tables) = (&self.image.parts.head, &self.image.parts.tables);
        let Some(record) = tables.identities.get(index) else {
            return Ok(());
        };
        let Some(Identity { kind, .. }) = as_identity(record).copied() else {
            return Err("is of an unknown kind");
        };
        let has_node = record.node != NONE;
        all(&[
            (
                record.peer_class < head.classes,
                "has a peer class that does not exist",
            ),
            (
                record.ingress <= head.rows && record.egress <= head.rows,
                "has a row that does not exist",
            ),
            (
                !has_node || (record.node as usize) < tables.nodes.len(),
                "has a node that does not exist",
            ),
            (
                has_node || kind != IdentityKind::Node,
                "is a node without a number",
            ),
            (
                kind != IdentityKind::Pod || (record.endpoint as usize) < tables.endpoints.len(),
                "has an endpoint that does not exist",
            ),
        ])
    }

    fn check_bucket<B: Bucket>(&self, hosts: &Table<B>, index: usize) -> Check {
        let Some(bucket) = hosts.get(index) else {
            return Ok(());
        };
        all(&[
            (
                bucket.is_consistent(),
                "does not say which of its slots are occupied",
            ),
            (
                bucket.reach() > 0 && bucket.reach() <= MAX_REACH,
                "has a reach out of bounds",
            ),
        ])?;
        let seed = self.image.parts.head.seed;
        for (key, identity) in bucket.hosts() {
            all(&[
                (
                    self.has_identity(identity),
                    "names an identity that does not exist",
                ),
                (
                    bucket::find(hosts, seed, key) == Some((index, identity)),
                    "holds an address that a lookup would not find there",
                ),
            ])?;
        }
        Ok(())
    }

    /// Children have higher indices than their parents, so that no path is a circle; a walk ends with the address.
    fn check_node_of(&self, trie: &Table<TrieNode>, index: usize) -> Check {
        let entries = trie.get(index).into_iter().flat_map(|node| node.entries);
        for entry in entries {
            if entry & TRIE_CHILD == 0 {
                all(&[(self.has_identity(entry), "names an identity that does not exist")])?;
                continue;
            }
            let child = (entry & !TRIE_CHILD) as usize;
            all(&[(
                child > index && child < trie.len(),
                "has a child that does not come after it",
            )])?;
        }
        Ok(())
    }

    fn check_row(&self, index: usize) -> Check {
        let tables = &self.image.parts.tables;
        let is_set = |set: u32| {
            let record = tables.provenance.get(set as usize);
            record.is_some_and(|record| record.kind == PROVENANCE_ISOLATING)
        };
        let Some(row) = tables.rows.get(index) else {
            return Ok(());
        };
        all(&[
            (
                row.isolating == NONE || is_set(row.isolating),
                "has isolating policies that do not exist",
            ),
            (
                row.own_node <= self.image.parts.head.rows,
                "leads to a row for the own node that does not exist",
            ),
        ])
    }

    /// `parts` is the highest part of each pattern.
    fn check_page(&self, index: usize, parts: &[u8]) -> Check {
        let tables = &self.image.parts.tables;
        let Some(page) = tables.row_pages.get(index) else {
            return Ok(());
        };
        let Some(last) = parts.get(page.pattern as usize) else {
            return Err("has a pattern that does not exist");
        };
        all(&[(
            page.palette as usize + usize::from(*last) < tables.palettes.len(),
            "has a palette that does not exist",
        )])
    }

    /// A pattern that is changed may have more parts than the palettes beside it in unchanged pages: their cells are then
    /// of no port map, or of a wrong one that the sum tells from what was published.
    fn check_pattern(&self, index: usize) -> Check {
        let pattern = self.image.parts.tables.patterns.get(index);
        all(&[(
            pattern.is_none_or(|pattern| {
                pattern
                    .parts
                    .iter()
                    .all(|part| usize::from(*part) < CLASSES_PER_PAGE)
            }),
            "has more parts than classes",
        )])
    }

    fn check_palette(&self, index: usize) -> Check {
        let tables = &self.image.parts.tables;
        let Some(entry) = tables.palettes.get(index).copied() else {
            return Ok(());
        };
        if entry & SAME_FOR_ALL != 0 {
            let (decision, provenance) = whole_cell_decision(entry);
            return all(&[(
                self.is_decided(decision, provenance),
                "has a decision of a rule that does not exist",
            )]);
        }
        all(&[(
            (entry as usize) < tables.port_maps.len(),
            "has a port map that does not exist",
        )])
    }

    fn is_decided(&self, decision: Decision, provenance: u32) -> bool {
        let rule = self.image.parts.tables.provenance.get(provenance as usize);
        let kind = match decision {
            Decision::DENY_BY_DEFAULT => PROVENANCE_ISOLATING,
            _ => PROVENANCE_RULE,
        };
        let is_named = rule.is_some_and(|rule| rule.kind == kind);
        let is_unnamed = provenance == NONE && decision != Decision::DENY_BY_DEFAULT;
        decision.is_known() && (is_named || is_unnamed)
    }

    fn check_port_map(&self, index: usize) -> Check {
        let tables = &self.image.parts.tables;
        let Some(map) = tables.port_maps.get(index) else {
            return Ok(());
        };
        all(&[
            (
                self.is_decided(map.portless().0, map.portless().1),
                "has a decision that this build does not know",
            ),
            (map.reserved == [0; 3], "has bits that this build does not know"),
        ])?;
        self.check_inline_ranges(map)?;
        for (pair, list) in map.starts.windows(2).zip(0..) {
            let (from, to) = (pair[0] as usize, pair[1] as usize);
            if from > to || to > tables.intervals.len() {
                return Err("has intervals that do not exist");
            }
            let mut last = None;
            for interval in (from..to).filter_map(|at| tables.intervals.get(at)) {
                let nested = interval.decision == Decision::NESTED;
                all(&[
                    (last.is_some() || interval.lo == 0, "does not begin at port 0"),
                    (
                        last.is_none_or(|last| last < interval.lo),
                        "has intervals out of order",
                    ),
                    (
                        !nested || self.is_innermost(interval.provenance),
                        "nests a port map that does not exist or nests another",
                    ),
                ])?;
                last = Some(interval.lo);
            }
            all(&[(
                list != OTHER_PROTOCOLS || last.is_none_or(|last| last <= u16::from(u8::MAX)),
                "decides about protocols that do not exist",
            )])?;
        }
        Ok(())
    }

    fn check_inline_ranges(&self, map: &PortMapRecord) -> Check {
        let portless = map.portless();
        let used = map.inline_ranges().count();
        all(&[(
            used == 0 || map.starts[0] == map.starts[1],
            "has ports of TCP both in ranges and in intervals",
        )])?;
        let mut next = Some(0);
        for (range, (lo, hi)) in map.los.iter().zip(&map.his).take(INLINE_RANGES).enumerate() {
            let (decision, provenance) = (map.decisions[range], map.provenances[range]);
            if range >= used {
                all(&[(
                    (*lo, *hi, decision, provenance) == (1, 0, portless.0, portless.1),
                    "has ranges out of order",
                )])?;
                continue;
            }
            all(&[
                (
                    lo <= hi && next.is_some_and(|next| next <= *lo),
                    "has ranges out of order",
                ),
                (
                    match decision {
                        Decision::NESTED => self.is_innermost(provenance),
                        _ => self.is_decided(decision, provenance),
                    },
                    "has a decision that this build does not know, or nests a port map that does not exist or nests another",
                ),
            ])?;
            next = hi.checked_add(1);
        }
        Ok(())
    }

    fn check_interval(&self, index: usize) -> Check {
        let tables = &self.image.parts.tables;
        let Some(interval) = tables.intervals.get(index) else {
            return Ok(());
        };
        let nested = interval.decision == Decision::NESTED;
        let decides = match nested {
            true => (interval.provenance as usize) < tables.port_maps.len(),
            false => self.is_decided(interval.decision, interval.provenance),
        };
        all(&[(
            decides && interval.reserved == 0,
            "has a decision that this build does not know",
        )])
    }

    /// Whether a port map exists and nests no other.
    fn is_innermost(&self, map: u32) -> bool {
        let tables = &self.image.parts.tables;
        let Some(map) = tables.port_maps.get(map as usize) else {
            return false;
        };
        let [from, .., to] = map.starts;
        let mut intervals = (from..to).filter_map(|at| tables.intervals.get(at as usize));
        !intervals.any(|interval| interval.decision == Decision::NESTED)
            && !map.decisions.contains(&Decision::NESTED)
    }
}
