//! Dead letters and replays. A repair command runs its own replicas next to a running system, which is safe because
//! functions are stateless.

use std::{collections::BTreeSet, time::Instant};

use anyhow::{Context, bail};
use backend_log::Start;
use chrono::{DateTime, SecondsFormat};
use eventing::{
    dead_letters::{DeadLetter, DeadLetterId, DeadLetters},
    replay,
    sink::Sink,
    source::Source,
};
use serde_json::Value;
use serving::Serving;

use crate::{
    arguments::{DeadLettersCommand, Which},
    stores::without_secrets,
    system::{FunctionSink, System},
    terminal::{print, print_indented, print_json},
    via::{Via, ViaSink},
};

/// Destination of a replay.
pub(crate) enum Target {
    /// Functions that this process starts, on the configured stores.
    Own(Serving),
    /// Functions behind a gateway, and the token that internal functions require.
    Via(Via, Option<String>),
}

impl Target {
    /// Starts no replica and opens no connection yet.
    pub(crate) fn open(system: &System, via: Option<Via>) -> anyhow::Result<Self> {
        Ok(match via {
            Some(via) => Self::Via(via, system.config.event_token()?),
            None => Self::Own(system.serve()?),
        })
    }

    fn sink(&self) -> anyhow::Result<Box<dyn Sink>> {
        Ok(match self {
            Self::Own(serving) => Box::new(FunctionSink(serving.invoker())),
            Self::Via(via, token) => Box::new(ViaSink::new(via.clone(), token.as_deref())?),
        })
    }

    /// Description to print, without secrets.
    fn describe(&self, system: &System) -> String {
        match self {
            Self::Own(_) => format!(
                "here, on the master {} and the views {}",
                without_secrets(&system.stores.master_url),
                without_secrets(&system.stores.views_url)
            ),
            Self::Via(via, _) => format!("at {via}"),
        }
    }

    async fn close(&self) {
        if let Self::Own(serving) = self {
            serving.shutdown().await;
        }
    }
}

/// Runs a `dead-letters` command.
pub(crate) async fn dead_letters(system: &System, command: DeadLettersCommand) -> anyhow::Result<()> {
    let topics = system.arrows.dead_letter_topics();
    let [topic] = topics.as_slice() else {
        bail!("the manifests name {} topics of dead letters", topics.len())
    };
    let letters = DeadLetters::read(&*system.log, topic).await.context("cannot read the dead letters")?;
    match command {
        DeadLettersCommand::List { json: false } => letters.iter().for_each(|letter| print(&line(letter))),
        DeadLettersCommand::List { json: true } => {
            let batch = letters.iter().map(|letter| letter.event.to_structured()).collect();
            print_json(&Value::Array(batch));
        }
        DeadLettersCommand::Show { letter, json: false } => show(one(&letters, letter)?),
        DeadLettersCommand::Show { letter, json: true } => {
            print_json(&one(&letters, letter)?.event.to_structured());
        }
        DeadLettersCommand::Drop(which) => {
            let chosen = chosen(&letters, &which)?;
            print(&format!("dropping {}", these(system, chosen.len())));
            for letter in chosen {
                letter.discard(&*system.log, topic).await?;
                print(&format!("{} dropped", letter.id));
            }
        }
        DeadLettersCommand::Replay { which, via } => {
            let chosen = chosen(&letters, &which)?;
            let target = Target::open(system, via)?;
            let replayed = replay_letters(system, topic, &chosen, &target).await;
            target.close().await;
            replayed?;
        }
    }
    Ok(())
}

async fn replay_letters(
    system: &System,
    topic: &str,
    letters: &[&DeadLetter],
    target: &Target,
) -> anyhow::Result<()> {
    if letters.is_empty() {
        print(&format!("there are {}", these(system, 0)));
        return Ok(());
    }
    let functions: BTreeSet<_> = letters.iter().map(|letter| letter.function()).collect();
    let functions: Vec<_> = functions.into_iter().collect();
    let (these, to) = (these(system, letters.len()), target.describe(system));
    print(&format!("replaying {these} to {} {to}", functions.join(", ")));
    let sink = target.sink()?;
    let mut failed = 0;
    for letter in letters {
        match letter.replay(&*system.log, topic, &*sink, &system.arrows.fed_functions()).await {
            Ok(()) => print(&format!("{} {} took it", letter.id, letter.function())),
            Err(error) => {
                failed += 1;
                print(&format!("{} {}: {error}", letter.id, letter.function()));
            }
        }
    }
    if failed > 0 {
        bail!("{failed} could not be delivered and stay");
    }
    Ok(())
}

fn these(system: &System, count: usize) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} dead letter{plural} of {}", without_secrets(&system.stores.log_url))
}

fn one(letters: &[DeadLetter], id: DeadLetterId) -> anyhow::Result<&DeadLetter> {
    letters.iter().find(|letter| letter.id == id).with_context(|| format!("there is no dead letter {id}"))
}

fn chosen<'a>(letters: &'a [DeadLetter], which: &Which) -> anyhow::Result<Vec<&'a DeadLetter>> {
    if which.all {
        return Ok(letters.iter().collect());
    }
    which.letters.iter().map(|id| one(letters, *id)).collect()
}

fn line(letter: &DeadLetter) -> String {
    let subject = letter.event.attribute("partitionkey").unwrap_or("-");
    let (function, code) = (letter.function(), letter.code().unwrap_or("-"));
    format!(
        "{:<8} {function:<8} {code:<4} {} {subject} {}",
        letter.id.to_string(),
        time(letter),
        detail(letter)
    )
}

fn show(letter: &DeadLetter) {
    print(&format!("letter {} of {}, for {}", letter.id, time(letter), letter.function()));
    print(&format!("reason: {}", letter.reason()));
    for (name, value) in &letter.event.attributes {
        print(&format!("{name}: {value}"));
    }
    if let Some(content_type) = &letter.event.content_type {
        print(&format!("datacontenttype: {content_type}"));
    }
    print("");
    print_indented(&String::from_utf8_lossy(&letter.event.data));
}

fn time(letter: &DeadLetter) -> String {
    let time = DateTime::from_timestamp_millis(letter.time_ms).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// The `detail` if the reason is a problem document, or else the reason itself.
fn detail(letter: &DeadLetter) -> String {
    let reason = letter.reason();
    let problem: Option<Value> = serde_json::from_str(&reason).ok();
    let detail = problem.as_ref().and_then(|problem| problem["detail"].as_str());
    detail.unwrap_or(&reason).to_owned()
}

/// The source that feeds a function.
///
/// # Errors
/// No source feeds it; the error lists the functions that can be replayed to.
pub(crate) fn source(system: &System, function: &str) -> anyhow::Result<Source> {
    let mut sources = system.arrows.sources().into_iter();
    sources.find(|source| source.function == function).with_context(|| {
        let fed: Vec<_> = system.arrows.fed_functions().into_iter().collect();
        format!("no KafkaSource feeds `{function}`; replay to one of: {}", fed.join(", "))
    })
}

/// Sends the log's records to a source's function again.
pub(crate) async fn replay(
    system: &System,
    target: &Target,
    source: &Source,
    from: Start,
) -> anyhow::Result<()> {
    let function = &source.function;
    let (log, to) = (without_secrets(&system.stores.log_url), target.describe(system));
    print(&format!("replaying {log} to {function} {to}"));
    let started = Instant::now();
    let sink = target.sink()?;
    let mut told = started;
    let replayed = replay::replay(source, from, &*system.log, &*sink, |done| {
        if told.elapsed().as_secs() >= 1 {
            told = Instant::now();
            print(&format!("{done} events"));
        }
    });
    let replayed = replayed.await;
    target.close().await;
    let replayed = replayed?;
    print(&format!(
        "{function} took {} events and rejected {} in {:.1} s",
        replayed.delivered,
        replayed.rejected,
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}
