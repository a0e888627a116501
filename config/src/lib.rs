//! Typed configuration of ringwall.
