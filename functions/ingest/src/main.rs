//! The function's own executable, which its image runs.

use std::process::ExitCode;

fn main() -> ExitCode {
    ingest::run()
}
