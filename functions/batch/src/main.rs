//! The function as a program of its own: what its image runs.

use std::process::ExitCode;

fn main() -> ExitCode {
    batch::run()
}
