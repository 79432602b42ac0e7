//! The whole system on one machine: the functions as child processes, Knative's autoscaler and event sources run from the
//! manifests of the cluster, and the commands to see it work and to repair it.

pub mod burst;
pub mod client;
mod command;
mod data_folder;
mod environment;
mod log_file;
mod manifests;
mod page;
mod repair;
mod stores;
mod system;
mod terminal;
mod via;

use std::process::ExitCode;

use clap::Parser;
use shared::config::{ConfigError, EXIT_CONFIG};

use crate::command::Cli;

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(run) = function() {
        return run();
    }
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(command::run(cli)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::print_error(&format!("{error:#}"));
            match error.downcast_ref::<ConfigError>() {
                Some(_) => ExitCode::from(EXIT_CONFIG),
                None => ExitCode::FAILURE,
            }
        }
    }
}

/// What `function NAME` runs, as the system does for each replica; looked at first, since a replica starts often and
/// reading the whole command line takes as long as all else.
fn function() -> Option<fn() -> ExitCode> {
    let mut args = std::env::args().skip(1);
    if args.next()? != "function" {
        return None;
    }
    match args.next()?.as_str() {
        "ingest" => Some(ingest::run),
        "count" => Some(count::run),
        "store" => Some(store::run),
        "batch" => Some(batch::run),
        "analytics" => Some(analytics::run),
        _ => None,
    }
}
