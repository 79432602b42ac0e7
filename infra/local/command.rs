//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use backend_log::Start;
use chrono::DateTime;
use clap::{Parser, Subcommand, ValueEnum};
use eventing::dead_letters::LetterId;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{
    burst::{self, Burst},
    repair,
    system::{System, say},
};

/// A Lambda Architecture as serverless functions, run on this machine as a cluster would run it
#[derive(Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Where the system is.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Place {
    /// Where the gateway listens
    #[arg(long, global = true, default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// The folder of everything embedded, and of the functions' output
    #[arg(long, global = true, default_value = "data")]
    pub(crate) data: PathBuf,
    /// Manifests, or folders of them [default: functions/*/service.yaml and eventing/*.yaml]
    #[arg(long, global = true, num_args = 1.., value_name = "PATH")]
    pub(crate) manifests: Vec<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the system until Ctrl-C or SIGTERM (the default)
    Run,
    /// Post many new users and wait until analytics counts each exactly once
    Burst(Burst),
    /// Events that could not be delivered: list, show, replay or drop them
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Send the log's users to a function once more, as after its views were lost
    Replay {
        /// Which function
        #[arg(long, value_enum)]
        to: Target,
        /// From the BEGINNING or from a time like 2022-05-14T16:57:40Z on
        #[arg(long, default_value = "BEGINNING", value_parser = start)]
        from: Start,
    },
}

#[derive(Subcommand)]
pub(crate) enum DeadLetters {
    /// One line each: name, function, status, time, user, reason
    List {
        /// As a batch of CloudEvents in JSON
        #[arg(long)]
        json: bool,
    },
    /// All of one
    Show {
        /// As `list` shows it
        letter: LetterId,
        /// As a CloudEvent in JSON
        #[arg(long)]
        json: bool,
    },
    /// Send them to their functions again; those that arrive are gone
    Replay(Which),
    /// Give them up
    Drop(Which),
}

/// Which dead letters.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// As `list` shows them
    pub(crate) letters: Vec<LetterId>,
    /// All that there are
    #[arg(long)]
    pub(crate) all: bool,
}

/// What reads the log.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Target {
    Count,
    Store,
}

fn start(text: &str) -> Result<Start, String> {
    if text == "BEGINNING" {
        return Ok(Start::Earliest);
    }
    let time = DateTime::parse_from_rfc3339(text);
    time.map(|time| Start::Time(time.timestamp_millis()))
        .map_err(|_| "give BEGINNING or a time of RFC 3339 like 2022-05-14T16:57:40Z".to_owned())
}

/// Runs all but a function.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<()> {
    let place = cli.place;
    match cli.command {
        None | Some(Command::Run) => {
            let stop = shared::serve::terminated()?;
            let listener = listen(place.listen).await?;
            System::open(&place)?.run(listener, stop).await
        }
        Some(Command::Burst(burst)) => run_burst(&place, burst).await,
        Some(Command::DeadLetters(command)) => repair::dead_letters(&System::open(&place)?, command).await,
        Some(Command::Replay { to, from }) => {
            let function = match to {
                Target::Count => "count",
                Target::Store => "store",
            };
            repair::replay(&System::open(&place)?, function, from).await
        }
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address}; give another with --listen"))
}

/// On the system that runs, or else on one that runs as long as the burst.
async fn run_burst(place: &Place, burst: Burst) -> anyhow::Result<()> {
    if TcpStream::connect(place.listen).await.is_ok() {
        return burst::run(place.listen, burst).await;
    }
    say(&format!("nothing listens on {}: the burst runs the system itself", place.listen));
    let listener = listen(place.listen).await?;
    let stop = CancellationToken::new();
    let system = System::open(place)?;
    let ended = stop.clone();
    let running = tokio::spawn(async move { system.run(listener, ended.cancelled_owned()).await });
    let done = burst::run(place.listen, burst).await;
    stop.cancel();
    running.await??;
    done
}
