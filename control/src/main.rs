//! The `ringwall` binary.

fn main() {}
