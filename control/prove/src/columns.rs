//! Columns by the page that their cells are on: most lines say the same about all of a page, and then it is one question.

use ringwall_dataplane::classify::CLASSES_PER_PAGE;

use super::number_relation::ClassMeaning;

/// All columns, in ascending order.
#[derive(Debug, Default)]
pub(super) struct Columns {
    columns: Vec<ClassMeaning>,
    /// One for each page with a column, in order.
    pages: Vec<PageColumns>,
    /// Columns of each page that differ in their port names.
    by_names: Vec<ClassMeaning>,
    /// By meaning: where its pages begin in `of_meanings`; and where the last one's end.
    first: Vec<usize>,
    of_meanings: Vec<usize>,
    /// The line at hand.
    round: u64,
}

/// The columns whose classes are on one page.
#[derive(Debug)]
struct PageColumns {
    columns: std::ops::Range<usize>,
    by_names: std::ops::Range<usize>,
    /// The last line of which a rule names one of them.
    named: u64,
}

/// What a line sees of a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinePage<'a> {
    columns: &'a [ClassMeaning],
    by_names: &'a [ClassMeaning],
    /// Whether a rule of the line names one of its meanings.
    pub is_named: bool,
}

impl<'a> LinePage<'a> {
    /// Every column.
    pub(super) fn columns(&self) -> &'a [ClassMeaning] {
        self.columns
    }

    /// One column for each list of port names that its ends have.
    pub(super) fn by_names(&self) -> impl Iterator<Item = ClassMeaning> + use<'a> {
        self.by_names.iter().copied()
    }

    /// Its highest class.
    pub(super) fn last_class(&self) -> u32 {
        self.columns.last().map_or(u32::MAX, |column| column.0)
    }
}

fn page_of(column: &ClassMeaning) -> u32 {
    column.0 / CLASSES_PER_PAGE as u32
}

impl Columns {
    /// `columns` in ascending order; `names` says which port names the ends of a meaning have.
    pub(super) fn of(columns: impl Iterator<Item = ClassMeaning>, names: impl Fn(u32) -> u32) -> Self {
        let mut this = Self {
            columns: columns.collect(),
            ..Self::default()
        };
        // Meanings with the pages that have them.
        let mut having: Vec<(u32, usize)> = Vec::with_capacity(this.columns.len());
        let mut seen: Vec<u32> = Vec::new();
        let mut from = 0;
        for page in this.columns.chunk_by(|one, other| page_of(one) == page_of(other)) {
            let first_name = this.by_names.len();
            seen.clear();
            for column in page {
                having.push((column.1, this.pages.len()));
                let names = names(column.1);
                if !seen.contains(&names) {
                    seen.push(names);
                    this.by_names.push(*column);
                }
            }
            let to = from + page.len();
            this.pages.push(PageColumns {
                columns: from..to,
                by_names: first_name..this.by_names.len(),
                named: 0,
            });
            from = to;
        }
        having.sort_unstable();
        having.dedup();
        for (meaning, page) in having {
            while this.first.len() <= meaning as usize {
                this.first.push(this.of_meanings.len());
            }
            this.of_meanings.push(page);
        }
        this.first.push(this.of_meanings.len());
        this
    }

    pub(super) fn len(&self) -> usize {
        self.columns.len()
    }

    /// Begins with a line whose rules name these meanings, those without a column among them.
    pub(super) fn begin(&mut self, named: &[u32]) {
        self.round += 1;
        for meaning in named {
            let at = *meaning as usize;
            let Some([from, to]) = self.first.get(at..at + 2) else {
                continue;
            };
            for page in &self.of_meanings[*from..*to] {
                self.pages[*page].named = self.round;
            }
        }
    }

    /// The pages, as the line sees them.
    pub(super) fn pages(&self) -> impl Iterator<Item = LinePage<'_>> {
        self.pages.iter().map(|page| LinePage {
            columns: &self.columns[page.columns.clone()],
            by_names: &self.by_names[page.by_names.clone()],
            is_named: page.named == self.round,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_their_columns_and_know_whether_a_rule_names_one() {
        let all = [(0, 7), (3, 2), (3, 7), (63, 2), (64, 9), (200, 7), (200, 9)];
        let mut columns = Columns::of(all.into_iter(), |meaning| u32::from(meaning == 9));
        assert_eq!(columns.len(), all.len());
        let seen = |columns: &Columns| {
            let pages = columns.pages();
            let seen = pages.map(|page| (page.columns().to_vec(), page.last_class(), page.is_named));
            seen.collect::<Vec<_>>()
        };
        let page = |range: std::ops::Range<usize>, last, named| (all[range].to_vec(), last, named);
        columns.begin(&[]);
        assert_eq!(
            seen(&columns),
            [
                page(0..4, 63, false),
                page(4..5, 64, false),
                page(5..7, 200, false)
            ]
        );
        columns.begin(&[0, 9, 1000, 8, u32::MAX]);
        assert_eq!(
            seen(&columns),
            [page(0..4, 63, false), page(4..5, 64, true), page(5..7, 200, true)]
        );
        columns.begin(&[2]);
        assert_eq!(
            seen(&columns),
            [
                page(0..4, 63, true),
                page(4..5, 64, false),
                page(5..7, 200, false)
            ]
        );
        let names: Vec<Vec<ClassMeaning>> = columns.pages().map(|page| page.by_names().collect()).collect();
        assert_eq!(names, [vec![(0, 7)], vec![(64, 9)], vec![(200, 7), (200, 9)]]);
    }
}
