//! The command line.

use std::net::SocketAddr;

use anyhow::Context;
use backend_log::Start;
use chrono::DateTime;
use clap::{Parser, Subcommand, ValueEnum};
use eventing::dead_letters::DeadLetterId;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{
    burst::{self, Burst},
    repair::{self, Target},
    stores::{Reach, refuse_mix},
    system::{Place, System},
    terminal::print,
    via::Via,
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

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the system until Ctrl-C or SIGTERM (the default)
    Run,
    /// Post many new users and wait until analytics counts each exactly once
    Burst(Burst),
    /// Events that could not be delivered: list, show, replay or drop them
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Send the log's users to a function once more, as after its views were lost
    Replay {
        /// Which function
        #[arg(long, value_enum)]
        to: Reader,
        /// From the BEGINNING or from a time like 2022-05-14T16:57:40Z on
        #[arg(long, default_value = "BEGINNING", value_parser = start)]
        from: Start,
        /// Send to the function behind this gateway, or at this URL with {function} in it, and start none here
        #[arg(long, value_name = "URL")]
        via: Option<Via>,
    },
}

#[derive(Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// One line each: name, function, status, time, user, reason
    List {
        /// As a batch of CloudEvents in JSON
        #[arg(long)]
        json: bool,
    },
    /// All of one
    Show {
        /// As `list` shows it
        letter: DeadLetterId,
        /// As a CloudEvent in JSON
        #[arg(long)]
        json: bool,
    },
    /// Send them to their functions again; those that arrive are gone
    Replay {
        #[command(flatten)]
        which: Which,
        /// Send to the functions behind this gateway, or at this URL with {function} in it, and start none here
        #[arg(long, value_name = "URL")]
        via: Option<Via>,
    },
    /// Give them up
    Drop(Which),
}

/// Which dead letters.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// As `list` shows them
    pub(crate) letters: Vec<DeadLetterId>,
    /// All that there are
    #[arg(long)]
    pub(crate) all: bool,
}

/// What reads the log.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Reader {
    Count,
    Store,
}

impl DeadLettersCommand {
    /// What the command writes to; `None` when it only reads.
    fn reach(&self) -> Option<Reach> {
        match self {
            Self::List { .. } | Self::Show { .. } => None,
            Self::Drop(_) | Self::Replay { via: Some(_), .. } => Some(Reach::Log),
            Self::Replay { via: None, .. } => Some(Reach::Functions),
        }
    }
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
        Some(Command::DeadLetters(command)) => {
            if let Some(reach) = command.reach() {
                refuse(reach)?;
            }
            repair::dead_letters(&System::open(&place)?, command).await
        }
        Some(Command::Replay { to, from, via }) => {
            refuse(if via.is_some() { Reach::Log } else { Reach::Functions })?;
            let function = match to {
                Reader::Count => "count",
                Reader::Store => "store",
            };
            let system = System::open(&place)?;
            repair::replay(&system, &Target::open(&system, via)?, function, from).await
        }
    }
}

/// Before anything is made or opened.
fn refuse(reach: Reach) -> anyhow::Result<()> {
    let get = shared::config::lookup(|key| std::env::var(key).ok())?;
    Ok(refuse_mix(get, reach)?)
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
    print(&format!("nothing listens on {}: the burst runs the system itself", place.listen));
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
