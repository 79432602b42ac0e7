//! The whole system on one machine: the functions as child processes, Knative's autoscaler and sources played from the
//! manifests of the cluster, and the commands to see it work and to repair it.

pub mod burst;
pub mod client;
mod command;
mod manifests;
mod page;
mod repair;
mod system;

use std::process::ExitCode;

use clap::Parser;
use shared::config::{ConfigError, EXIT_CONFIG};

use crate::command::{Cli, Command, Function};

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Command::Function { name }) = cli.command {
        return match name {
            Function::Ingest => ingest::run(),
            Function::Count => count::run(),
            Function::Store => store::run(),
            Function::Batch => batch::run(),
            Function::Analytics => analytics::run(),
        };
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(command::run(cli)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            match error.downcast_ref::<ConfigError>() {
                Some(_) => ExitCode::from(EXIT_CONFIG),
                None => ExitCode::FAILURE,
            }
        }
    }
}
