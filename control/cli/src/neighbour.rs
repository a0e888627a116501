//! What `ringwall` would be in another version: for tests of upgrades.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringwall::main()
}
