//! The forwarder as a program: what its image runs.

use std::process::ExitCode;

fn main() -> ExitCode {
    forwarder::run()
}
