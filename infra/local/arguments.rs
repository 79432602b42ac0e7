//! Arguments of the repair commands, as clap parses them.

use backend_log::Start;
use chrono::DateTime;
use clap::Subcommand;
use eventing::dead_letters::DeadLetterId;

use crate::via::Via;

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

/// Parses `--from`.
pub(crate) fn start(text: &str) -> Result<Start, String> {
    if text == "BEGINNING" {
        return Ok(Start::Earliest);
    }
    let time = DateTime::parse_from_rfc3339(text);
    time.map(|time| Start::Time(time.timestamp_millis()))
        .map_err(|_| "give BEGINNING or a time of RFC 3339 like 2022-05-14T16:57:40Z".to_owned())
}
