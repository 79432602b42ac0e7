//! Dead letters and replays. Each runs beside the system in a process of its own, with functions of its own:
//! functions keep nothing, so that more of them do no harm.

use std::time::Instant;

use anyhow::{Context, bail};
use backend_log::Start;
use chrono::{DateTime, SecondsFormat};
use eventing::{
    dead_letters::{Letter, LetterId, Letters},
    replay,
};
use serde_json::Value;

use crate::{
    command::{DeadLetters, Which},
    system::{FunctionSink, System, say},
};

/// Does what is to be done with the dead letters.
pub(crate) async fn dead_letters(system: &System, command: DeadLetters) -> anyhow::Result<()> {
    let topics = system.arrows.dead_letter_topics();
    let [topic] = topics.as_slice() else {
        bail!("the manifests name {} topics of dead letters", topics.len())
    };
    let letters = Letters::read(&*system.log, topic).await.context("cannot read the dead letters")?;
    match command {
        DeadLetters::List { json: false } => letters.iter().for_each(|letter| say(&line(letter))),
        DeadLetters::List { json: true } => {
            let batch = letters.iter().map(|letter| letter.event.to_structured()).collect();
            say(&Value::Array(batch).to_string());
        }
        DeadLetters::Show { letter, json: false } => show(one(&letters, letter)?),
        DeadLetters::Show { letter, json: true } => {
            say(&one(&letters, letter)?.event.to_structured().to_string());
        }
        DeadLetters::Drop(which) => {
            for letter in chosen(&letters, &which)? {
                letter.discard(&*system.log, topic).await?;
                say(&format!("{} dropped", letter.id));
            }
        }
        DeadLetters::Replay(which) => {
            let chosen = chosen(&letters, &which)?;
            let serving = system.serve()?;
            let sink = FunctionSink(serving.invoker());
            let mut failed = 0;
            for letter in chosen {
                match letter.replay(&*system.log, topic, &sink, &system.arrows.fed_functions()).await {
                    Ok(()) => say(&format!("{} {} took it", letter.id, letter.function())),
                    Err(error) => {
                        failed += 1;
                        say(&format!("{} {}: {error}", letter.id, letter.function()));
                    }
                }
            }
            serving.shutdown().await;
            if failed > 0 {
                bail!("{failed} could not be delivered and stay");
            }
        }
    }
    Ok(())
}

fn one(letters: &[Letter], id: LetterId) -> anyhow::Result<&Letter> {
    letters.iter().find(|letter| letter.id == id).with_context(|| format!("there is no dead letter {id}"))
}

fn chosen<'a>(letters: &'a [Letter], which: &Which) -> anyhow::Result<Vec<&'a Letter>> {
    if which.all {
        return Ok(letters.iter().collect());
    }
    which.letters.iter().map(|id| one(letters, *id)).collect()
}

fn line(letter: &Letter) -> String {
    let subject = letter.event.attribute("partitionkey").unwrap_or("-");
    let (function, code) = (letter.function(), letter.code().unwrap_or("-"));
    format!(
        "{:<8} {function:<8} {code:<4} {} {subject} {}",
        letter.id.to_string(),
        time(letter),
        detail(letter)
    )
}

fn show(letter: &Letter) {
    say(&format!("letter {} of {}, for {}", letter.id, time(letter), letter.function()));
    say(&format!("reason: {}", letter.reason()));
    for (name, value) in &letter.event.attributes {
        say(&format!("{name}: {value}"));
    }
    if let Some(content_type) = &letter.event.content_type {
        say(&format!("datacontenttype: {content_type}"));
    }
    say(&format!("\n{}", String::from_utf8_lossy(&letter.event.data)));
}

fn time(letter: &Letter) -> String {
    let time = DateTime::from_timestamp_millis(letter.time_ms).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// What a problem says is its detail; what is no problem is shown as it is, on one line.
fn detail(letter: &Letter) -> String {
    let reason = letter.reason();
    let problem: Option<Value> = serde_json::from_str(&reason).ok();
    let detail = problem.as_ref().and_then(|problem| problem["detail"].as_str());
    detail.unwrap_or(&reason).replace(['\n', '\r'], " ")
}

/// Sends the log's records to a function once more.
pub(crate) async fn replay(system: &System, function: &str, from: Start) -> anyhow::Result<()> {
    let sources = system.arrows.sources();
    let source = sources.iter().find(|source| source.function == function);
    let source = source.with_context(|| format!("no KafkaSource leads to {function}"))?;
    let serving = system.serve()?;
    let started = Instant::now();
    let sink = FunctionSink(serving.invoker());
    let mut told = started;
    let replayed = replay::replay(source, from, &*system.log, &sink, |done| {
        if told.elapsed().as_secs() >= 1 {
            told = Instant::now();
            say(&format!("{done} events"));
        }
    });
    let replayed = replayed.await;
    serving.shutdown().await;
    let replayed = replayed?;
    say(&format!(
        "{function} took {} events and rejected {} in {:.1} s",
        replayed.delivered,
        replayed.rejected,
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}
