//! Runs a KafkaSource: reads the log as a consumer group and sends each record as one event, until it is delivered or a
//! dead letter. Only then does its offset count as finished; a crash in between sends the record again.

use std::{panic::resume_unwind, sync::Arc};

use backend_log::Log;
use framework::supervise::supervise;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{dispatcher::Dispatcher, progress::Progress, reader::Reader, sink::Sink, source::Source};

/// Runs a source until `stop`, then drains the events in flight and commits. After a panic it restarts from the group's
/// committed offsets.
pub async fn run(
    source: Source,
    log: Arc<dyn Log>,
    sink: Arc<dyn Sink>,
    progress: Arc<Progress>,
    stop: CancellationToken,
) {
    let shared = progress.clone();
    let name = source.name.clone();
    let start = || {
        shared.unfinished().clear();
        read_and_dispatch(source.clone(), log.clone(), sink.clone(), shared.clone(), stop.clone())
    };
    supervise(&name, &progress.health, start).await;
}

/// Reader and dispatcher are two tasks, so that the reader serves the group while the dispatcher works. [`Reader`] says
/// why they cannot deadlock. If one panics, the other one ends: its channels are closed.
async fn read_and_dispatch(
    source: Source,
    log: Arc<dyn Log>,
    sink: Arc<dyn Sink>,
    progress: Arc<Progress>,
    stop: CancellationToken,
) {
    let (records_in, records) = mpsc::channel(1);
    let (commits, commits_in) = mpsc::channel(1);
    // Not in the channel of records, where it would wait behind them.
    let (revocations_in, revocations) = mpsc::channel(1);
    let reader = Reader::new(source.clone(), log.clone(), progress.clone(), revocations_in);
    let mut reading = tokio::spawn(reader.run(records_in, commits_in, stop.clone()));
    let dispatcher = Dispatcher { source, log, sink, progress, stop };
    tokio::select! {
        biased;
        () = dispatcher.run(records, revocations, commits) => {}
        ended = &mut reading => match ended {
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            _ => return,
        }
    }
    if let Err(error) = reading.await
        && error.is_panic()
    {
        resume_unwind(error.into_panic());
    }
}
