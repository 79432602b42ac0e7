//! The laptop's one command; a function's process is the same program.

use std::process::ExitCode;

fn main() -> ExitCode {
    lambda_architecture::main()
}
