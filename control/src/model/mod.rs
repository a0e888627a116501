//! The policy model: ordered tiers of policies with ordered rules. Pure.
