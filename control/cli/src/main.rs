//! The `ringwall` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringwall::main()
}
