//! A KafkaSource: reads the log as a consumer group and sends each record as one event, until it arrived or is in the
//! dead letter. Only then its offset counts as finished; what a crash interrupts is sent again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use backend_log::{Batch, Consumer, Delivered, Log, LogError, Start};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    delivery::{Delivery, deliver},
    event::{Event, Origin},
    manifest::{InitialOffset, KafkaSource, Metadata, Ordering},
    offsets::Offsets,
    queue::Queue,
    sink::Sink,
};

/// Most events of an unordered consumer that are under way at once (the dispatcher's `max.poll.records`).
const PER_CONSUMER: usize = 50;
/// Most events of an ordered source under way at once; its partitions limit it first.
const ORDERED: usize = 1_000;
/// Records read ahead.
const AHEAD: usize = 2_000;
/// Records of one read.
const PAGE: usize = 500;
/// How often offsets are committed.
const COMMIT_EVERY: Duration = Duration::from_secs(5);
/// How long what is under way may take when the source is stopped.
const DRAIN: Duration = Duration::from_secs(10);
/// How long after a failure the log is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// A source as it is to be played.
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
        let origin = Origin { namespace: &self.namespace, name: &self.name, topic: &self.topic };
        let mut event = Event::of_record(delivered, origin)?;
        for (name, value) in &self.overrides {
            event.set(name, value.clone());
        }
        Ok(event)
    }

    /// Where its function is in a cluster, which is how a dead letter names it.
    #[must_use]
    pub fn destination(&self) -> String {
        format!("http://{}.{}.svc.cluster.local", self.function, self.namespace)
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
    positions: Mutex<Option<BTreeMap<i32, i64>>>,
}

impl Progress {
    /// How many records are not finished, given where the partitions end; all of them before the source began.
    #[must_use]
    pub fn lag(&self, ends: &BTreeMap<i32, i64>) -> i64 {
        let positions = self.positions();
        let position = |partition| positions.as_ref().and_then(|p| p.get(partition)).copied().unwrap_or(0);
        ends.iter().map(|(partition, end)| (end - position(partition)).max(0)).sum()
    }

    fn positions(&self) -> MutexGuard<'_, Option<BTreeMap<i32, i64>>> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Plays a source until it is told to stop; then lets what is under way end, and commits.
pub async fn play(
    source: Source,
    log: Arc<dyn Log>,
    sink: Arc<dyn Sink>,
    progress: Arc<Progress>,
    stop: CancellationToken,
) {
    let Some(consumer) = consumer(&source, &*log, &progress, &stop).await else { return };
    let (records_in, records) = mpsc::channel(1);
    let (commits, commits_in) = mpsc::channel(1);
    let reading = tokio::spawn(read(consumer, records_in, commits_in, stop.clone()));
    let player = Player { source, log, sink, progress, stop };
    player.run(records, commits).await;
    if let Err(error) = reading.await {
        tracing::error!(%error, "the reader of the log ended badly");
    }
}

/// Opens the consumer, as often as it takes.
async fn consumer(
    source: &Source,
    log: &dyn Log,
    progress: &Progress,
    stop: &CancellationToken,
) -> Option<Box<dyn Consumer>> {
    loop {
        match begin(source, log).await {
            Ok((consumer, positions)) => {
                *progress.positions() = Some(positions);
                return Some(consumer);
            }
            Err(error) => {
                tracing::warn!(source = source.name, error = %chain(&error), "cannot read the log now")
            }
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = sleep(AGAIN) => {}
        }
    }
}

async fn begin(source: &Source, log: &dyn Log) -> Result<(Box<dyn Consumer>, BTreeMap<i32, i64>), LogError> {
    let mut consumer = log.consume(&source.topic, Some(&source.group), source.start).await?;
    let mut positions = consumer.committed().await?;
    if positions.is_empty() && source.start == Start::Latest {
        positions = consumer.ends().await?;
    }
    Ok((consumer, positions))
}

/// Owns the consumer: reads ahead as far as there is room, and commits what it is told.
async fn read(
    mut consumer: Box<dyn Consumer>,
    records: mpsc::Sender<Batch>,
    mut commits: mpsc::Receiver<BTreeMap<i32, i64>>,
    stop: CancellationToken,
) {
    loop {
        let next = async {
            let room = records.reserve().await;
            (consumer.poll(PAGE).await, room)
        };
        tokio::select! {
            // First, so that a busy log does not keep commits waiting.
            biased;
            next = commits.recv() => match next {
                Some(next) => commit(&mut *consumer, &next).await,
                None => return,
            },
            (batch, room) = next, if !stop.is_cancelled() => match (batch, room) {
                (Ok(batch), Ok(room)) => room.send(batch),
                (Err(error), _) => {
                    tracing::warn!(error = %chain(&error), "cannot read the log now");
                    sleep(AGAIN).await;
                }
                (_, Err(_)) => {}
            },
            () = stop.cancelled(), if !stop.is_cancelled() => {}
        }
    }
}

async fn commit(consumer: &mut dyn Consumer, next: &BTreeMap<i32, i64>) {
    if let Err(error) = consumer.commit(next).await {
        // Those records come again after a restart; the next commit holds them too.
        tracing::warn!(error = %chain(&error), "cannot commit offsets now");
    }
}

struct Player {
    source: Source,
    log: Arc<dyn Log>,
    sink: Arc<dyn Sink>,
    progress: Arc<Progress>,
    stop: CancellationToken,
}

impl Player {
    async fn run(&self, mut records: mpsc::Receiver<Batch>, commits: mpsc::Sender<BTreeMap<i32, i64>>) {
        let mut queue = Queue::new(self.source.ordering, self.source.limit);
        let mut offsets = Offsets::default();
        let mut under_way = FuturesUnordered::new();
        let mut commit = interval(COMMIT_EVERY);
        commit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(delivered) = queue.next() {
                under_way.push(self.send(delivered));
            }
            self.progress.under_way.store(under_way.len(), Relaxed);
            tokio::select! {
                () = self.stop.cancelled() => break,
                Some((partition, offset, finished)) = under_way.next() => {
                    queue.finished(partition);
                    self.finish(&mut offsets, partition, offset, finished);
                }
                Some(batch) = records.recv(), if queue.waiting() < AHEAD => {
                    for partition in batch.revoked {
                        queue.forget(partition);
                        offsets.forget(partition);
                    }
                    for delivered in batch.records {
                        offsets.begin(delivered.partition, delivered.offset);
                        queue.push(delivered);
                    }
                }
                _ = commit.tick() => {
                    if let Some(next) = offsets.take_commit() {
                        let _ = commits.send(next).await;
                    }
                }
            }
        }
        let drain = async {
            while let Some((partition, offset, finished)) = under_way.next().await {
                self.finish(&mut offsets, partition, offset, finished);
            }
        };
        // What does not end in time is sent again after the next start.
        let _ = timeout(DRAIN, drain).await;
        if let Some(next) = offsets.take_commit() {
            let _ = commits.send(next).await;
        }
    }

    fn finish(&self, offsets: &mut Offsets, partition: i32, offset: i64, finished: bool) {
        let next = finished.then(|| offsets.finish(partition, offset)).flatten();
        if let (Some(next), Some(positions)) = (next, self.progress.positions().as_mut()) {
            positions.insert(partition, next);
        }
    }

    /// Sends a record until it arrived or is in the dead letter; not finished when the source is stopped before that.
    async fn send(&self, delivered: Delivered) -> (i32, i64, bool) {
        let place = (delivered.partition, delivered.offset);
        let finished = tokio::select! {
            biased;
            () = self.arrive(&delivered) => true,
            // A request under way may still be answered; a wait for the next try is given up.
            () = async { self.stop.cancelled().await; sleep(DRAIN / 2).await } => false,
        };
        (place.0, place.1, finished)
    }

    async fn arrive(&self, delivered: &Delivered) {
        let Self { source, progress, .. } = self;
        let made =
            source.event(delivered).and_then(|event| Ok((event.to_request(&source.namespace)?, event)));
        let (request, event) = match made {
            Ok(made) => made,
            Err(why) => {
                // As the dispatcher does: there is no event that a dead letter could hold.
                tracing::error!(source = source.name, partition = delivered.partition, offset = delivered.offset, %why, "a record that is no event was skipped");
                return;
            }
        };
        let retried = || {
            progress.retried.fetch_add(1, Relaxed);
        };
        match deliver(&*self.sink, &source.function, request, &source.delivery, retried).await {
            Ok(()) => {
                progress.delivered.fetch_add(1, Relaxed);
            }
            Err(failure) => {
                tracing::warn!(
                    source = source.name,
                    function = source.function,
                    why = failure.why,
                    "an event goes to the dead letter"
                );
                let letter = event.dead(&source.destination(), &failure);
                // Only once it is there may the offset be committed: an event must never be in neither place.
                while let Err(error) = self.log.append(&source.dead_letters, vec![letter.to_record()]).await {
                    tracing::warn!(error = %chain(&error), "cannot append to the dead letter now");
                    sleep(AGAIN).await;
                }
                progress.dead.fetch_add(1, Relaxed);
            }
        }
    }
}

/// An error with its causes.
fn chain(error: &LogError) -> String {
    shared::error::Error::unavailable(error).to_string()
}
