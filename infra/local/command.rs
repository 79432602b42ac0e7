//! The command line.

use std::net::SocketAddr;

use anyhow::Context;
use backend_log::Start;
use clap::{Parser, Subcommand};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{
    arguments::{self, DeadLettersCommand},
    burst::{self, Burst},
    repair::{self, Target},
    stores::{Reach, refuse_mix},
    system::{System, SystemArgs},
    terminal::print,
    via::Via,
};

/// A Lambda Architecture as serverless functions, run on this machine as a cluster would run it
#[derive(Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) args: SystemArgs,
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
        /// Which function; any that a KafkaSource feeds
        #[arg(long, value_name = "FUNCTION")]
        to: String,
        /// From the BEGINNING or from a time like 2022-05-14T16:57:40Z on
        #[arg(long, default_value = "BEGINNING", value_parser = arguments::start)]
        from: Start,
        /// Send to the function behind this gateway, or at this URL with {function} in it, and start none here
        #[arg(long, value_name = "URL")]
        via: Option<Via>,
    },
}

impl DeadLettersCommand {
    /// The stores that the command writes to; `None` if it only reads.
    fn reach(&self) -> Option<Reach> {
        match self {
            Self::List { .. } | Self::Show { .. } => None,
            Self::Drop(_) | Self::Replay { via: Some(_), .. } => Some(Reach::Log),
            Self::Replay { via: None, .. } => Some(Reach::Functions),
        }
    }
}

/// Runs the command, except `function NAME`, which runs before the command line is parsed.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<()> {
    let args = cli.args;
    match cli.command {
        None | Some(Command::Run) => {
            let stop = framework::serve::terminated()?;
            let listener = listen(args.listen).await?;
            System::open(&args)?.run(listener, stop).await
        }
        Some(Command::Burst(burst)) => run_burst(&args, burst).await,
        Some(Command::DeadLetters(command)) => {
            if let Some(reach) = command.reach() {
                refuse(reach)?;
            }
            repair::dead_letters(&System::open(&args)?, command).await
        }
        Some(Command::Replay { to, from, via }) => {
            refuse(if via.is_some() { Reach::Log } else { Reach::Functions })?;
            let system = System::open(&args)?;
            let source = repair::source(&system, &to)?;
            repair::replay(&system, &Target::open(&system, via)?, &source, from).await
        }
    }
}

/// Checks the stores before anything is created or opened.
fn refuse(reach: Reach) -> anyhow::Result<()> {
    let get = framework::config::lookup(|key| std::env::var(key).ok())?;
    Ok(refuse_mix(get, reach)?)
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address}; give another with --listen"))
}

/// Runs the burst against the running system, or else against one that runs only for the burst.
async fn run_burst(args: &SystemArgs, burst: Burst) -> anyhow::Result<()> {
    if TcpStream::connect(args.listen).await.is_ok() {
        return burst::run(args.listen, burst).await;
    }
    print(&format!("nothing listens on {}: the burst runs the system itself", args.listen));
    let listener = listen(args.listen).await?;
    let stop = CancellationToken::new();
    let system = System::open(args)?;
    let ended = stop.clone();
    let running = tokio::spawn(async move { system.run(listener, ended.cancelled_owned()).await });
    let done = burst::run(args.listen, burst).await;
    stop.cancel();
    running.await??;
    done
}
