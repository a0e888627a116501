//! What people ask about policy: who decides a flow and why, what a change would change, what is not as it was meant.
//!
//! * [`judge`] one flow, by snapshot and by the literal evaluator. [`explain`] the same, step by step, with what would
//!   turn the verdict round.
//! * [`refine`] all flows at once: equivalence classes of ends, differences between two states. [`intents`] assertions
//!   about them.
//! * [`hypothetical`] states that are not in force, compiled cheaply one after the other.
//! * [`services`] where connections to a Service end, and whom the endpoints see.
//! * [`lint`] policies that are legal but probably not what their author intended. [`coverage`] which pods are protected.
#![forbid(unsafe_code)]

pub mod coverage;
pub mod explain;
pub mod flow;
pub mod hypothetical;
pub mod intents;
pub mod judge;
pub mod lint;
pub mod refine;
pub mod services;
#[cfg(test)]
mod tiers_bed;
