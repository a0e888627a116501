//! Medians and ranges of repeated measurements.

use std::fmt;

use serde_json::{Value, json};

/// Repeated measurements of one thing, in order of size.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    /// In the order in which they were taken
    taken: Vec<f64>,
    sorted: Vec<f64>,
    unit: &'static str,
}

impl Figures {
    /// None of nothing.
    pub(crate) fn of(values: Vec<f64>, unit: &'static str) -> Option<Self> {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        (!values.is_empty()).then_some(Self {
            taken: values,
            sorted,
            unit,
        })
    }

    /// In the order in which they were taken.
    pub(crate) fn taken(&self) -> &[f64] {
        &self.taken
    }

    pub(crate) fn unit(&self) -> &'static str {
        self.unit
    }

    /// The value that a share of the measurements does not exceed.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let last = self.sorted.len() - 1;
        self.sorted[((last as f64 * share).round() as usize).min(last)]
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// For other programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "unit": self.unit,
            "runs": self.sorted.len(),
            "median": self.median(),
            "least": self.quantile(0.0),
            "most": self.quantile(1.0),
            "p99": self.quantile(0.99),
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sorted, unit, .. } = self;
        write!(
            f,
            "median {:.3} {unit}, range {:.3} to {:.3}, {} runs",
            self.median(),
            self.quantile(0.0),
            self.quantile(1.0),
            sorted.len()
        )
    }
}
