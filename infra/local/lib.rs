//! The whole system on one machine: the functions as child processes, Knative's autoscaler and event sources run from
//! the manifests of the cluster, and the commands to see it work and to repair it.

mod arguments;
pub mod burst;
pub mod client;
mod command;
mod data_folder;
mod environment;
mod log_file;
mod manifests;
mod page;
mod repair;
mod routes;
#[cfg(test)]
mod sixth_function;
mod stores;
mod system;
mod terminal;
mod via;

use std::process::ExitCode;

use clap::Parser;
use framework::config::{ConfigError, EXIT_CONFIG};

use crate::command::Cli;

/// Runs the command that the command line names.
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

/// A function's name, and what its process runs.
type LinkedFunction = (&'static str, fn() -> ExitCode);

/// The functions that are linked into this program. The only list that a new function must be added to: everything else
/// is read from its manifest.
const FUNCTIONS: [LinkedFunction; 5] = [
    ("ingest", ingest::run),
    ("count", count::run),
    ("store", store::run),
    ("batch", batch::run),
    ("analytics", analytics::run),
];

/// The function that `function NAME` runs. Checked before clap parses anything: replicas start often, and clap would
/// double the time of a start.
fn function() -> Option<fn() -> ExitCode> {
    let mut args = std::env::args().skip(1);
    if args.next()? != "function" {
        return None;
    }
    let name = args.next()?;
    FUNCTIONS.iter().find(|(function, _)| *function == name).map(|(_, run)| *run)
}
