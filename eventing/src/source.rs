//! A KafkaSource: reads the log as a consumer group and sends each record as one event, until it arrived or is in the
//! dead letter. Only then its offset counts as finished; what a crash interrupts is sent again.

use std::{
    collections::BTreeMap,
    ops::Range,
    panic::resume_unwind,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize},
    },
    time::Duration,
};

use backend_log::{Delivered, Log, LogError, PartitionOffsets, Start, Watermarks};
use framework::supervise::{TaskHealth, supervise};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    delivery::Delivery,
    dispatcher::Dispatcher,
    event::{Event, Origin},
    manifest::{InitialOffset, KafkaSource, Metadata, Ordering},
    reader::Reader,
    sink::Sink,
};

/// Most events of an unordered consumer that are under way at once (the dispatcher's `max.poll.records`).
const PER_CONSUMER: usize = 50;
/// Most events of an ordered source under way at once; its partitions limit it first.
const ORDERED: usize = 1_000;
/// How long after a failure the log is asked again.
pub(crate) const RETRY_BACKOFF: Duration = Duration::from_millis(500);

/// A source as it is to be run.
#[derive(Clone)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The topic.
    pub topic: String,
    /// Whose offsets are remembered.
    pub group: String,
    /// Where a group begins that never committed.
    pub start: Start,
    /// Whether a partition's events wait for each other.
    pub ordering: Ordering,
    /// Most events under way at once.
    pub limit: usize,
    /// The function.
    pub function: String,
    /// How events are tried.
    pub delivery: Delivery,
    /// The topic of what never arrives.
    pub dead_letters: String,
    /// Extensions to set.
    pub overrides: BTreeMap<String, String>,
}

impl Source {
    /// The sources of a manifest, one a topic; what never arrives goes to the topic `dead_letters`.
    #[must_use]
    pub fn of(metadata: &Metadata, spec: &KafkaSource, dead_letters: &str) -> Vec<Self> {
        let consumers = spec.consumers.unwrap_or(1).max(1) as usize;
        let source = |topic: &String| Self {
            name: metadata.name.clone(),
            namespace: metadata.namespace().to_owned(),
            topic: topic.clone(),
            group: spec
                .consumer_group
                .clone()
                .unwrap_or_else(|| format!("knative-kafka-source-{}", metadata.name)),
            start: match spec.initial_offset {
                InitialOffset::Earliest => Start::Earliest,
                InitialOffset::Latest => Start::Latest,
            },
            ordering: spec.ordering,
            limit: match spec.ordering {
                Ordering::Ordered => ORDERED,
                Ordering::Unordered => consumers * PER_CONSUMER,
            },
            function: spec.sink.reference.name.clone(),
            delivery: Delivery::of(spec.delivery.as_ref()),
            dead_letters: dead_letters.to_owned(),
            overrides: spec.ce_overrides.clone().unwrap_or_default().extensions,
        };
        spec.topics.iter().map(source).collect()
    }

    /// The event of a record as this source sends it.
    pub fn event(&self, delivered: &Delivered) -> Result<Event, crate::event::Undecodable> {
        let mut event = Event::of_record(delivered, self.origin())?;
        for (name, value) in &self.overrides {
            event.set(name, value.clone());
        }
        Ok(event)
    }

    pub(crate) fn origin(&self) -> Origin<'_> {
        Origin { namespace: &self.namespace, name: &self.name, topic: &self.topic }
    }
}

/// What a source did and where it is; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Events that arrived.
    pub delivered: AtomicU64,
    /// Tries after the first.
    pub retried: AtomicU64,
    /// Events that went to the dead letter.
    pub dead: AtomicU64,
    /// Events under way.
    pub under_way: AtomicUsize,
    /// Restarts after panics, and the last failure.
    pub health: TaskHealth,
    /// First unfinished offsets of the partitions that are read here.
    pub(crate) own: Mutex<PartitionOffsets>,
    /// Where the group began that had committed nothing.
    pub(crate) begin: Mutex<PartitionOffsets>,
}

impl Progress {
    /// How many records are not finished, of those that are kept. Partitions that other members of the group read are
    /// where it `committed`.
    #[must_use]
    pub fn lag(&self, kept: &Watermarks, committed: &PartitionOffsets) -> i64 {
        let (own, begin) = (lock(&self.own), lock(&self.begin));
        let position = |partition| own.get(partition).or(committed.get(partition)).or(begin.get(partition));
        let lag = |(partition, kept): (_, &Range<i64>)| {
            kept.end - position(partition).copied().unwrap_or(kept.start).max(kept.start)
        };
        kept.iter().map(|kept| lag(kept).max(0)).sum()
    }
}

pub(crate) fn lock(offsets: &Mutex<PartitionOffsets>) -> MutexGuard<'_, PartitionOffsets> {
    offsets.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a source until it is told to stop; then lets what is under way end, and commits. After a panic it begins again
/// where the group committed.
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
        lock(&shared.own).clear();
        read_and_dispatch(source.clone(), log.clone(), sink.clone(), shared.clone(), stop.clone())
    };
    supervise(&name, &progress.health, start).await;
}

/// Reader and dispatcher are two tasks, so that the group is served while the dispatcher works. They cannot wait for
/// each other: the reader waits for the dispatcher's answer to a revocation, and the dispatcher waits for nothing that
/// the reader does but its end, after it has stopped answering.
async fn read_and_dispatch(
    source: Source,
    log: Arc<dyn Log>,
    sink: Arc<dyn Sink>,
    progress: Arc<Progress>,
    stop: CancellationToken,
) {
    let (records_in, records) = mpsc::channel(1);
    let (commits, commits_in) = mpsc::channel(1);
    // Beside the records, so that those that wait do not delay it.
    let (revocations_in, revocations) = mpsc::channel(1);
    let reader = Reader::new(source.clone(), log.clone(), progress.clone(), revocations_in);
    let mut reading = tokio::spawn(reader.run(records_in, commits_in, stop.clone()));
    let dispatcher = Dispatcher { source, log, sink, progress, stop };
    tokio::select! {
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

/// An error with its causes.
pub(crate) fn chain(error: &LogError) -> String {
    framework::error::Error::unavailable(error).to_string()
}
