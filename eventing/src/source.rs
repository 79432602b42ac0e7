//! A KafkaSource: reads the log as a consumer group and sends each record as one event, until it arrived or is in the
//! dead letter. Only then its offset counts as finished; what a crash interrupts is sent again.

use std::{
    collections::BTreeMap,
    ops::Range,
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
    reader::{Leaving, Reader},
    sink::Sink,
};

/// Most events of an unordered consumer that are under way at once (the dispatcher's `max.poll.records`).
const PER_CONSUMER: usize = 50;
/// Most events of an ordered source under way at once; its partitions limit it first.
const ORDERED: usize = 1_000;
/// Bytes of records read ahead. A log gives out many records of a partition before it comes to the next one, and an
/// ordered source needs some of each to have many under way.
const AHEAD: usize = 16 * 1024 * 1024;
/// How often offsets are committed.
const COMMIT_EVERY: Duration = Duration::from_secs(5);
/// How long what is under way may take when the source is stopped.
const DRAIN: Duration = Duration::from_secs(10);
/// How long after a failure the log is asked again.
pub(crate) const AGAIN: Duration = Duration::from_millis(500);

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
    /// First unfinished offsets of the partitions that are played here.
    own: Mutex<BTreeMap<i32, i64>>,
    /// Where the group began that had committed nothing.
    begin: Mutex<BTreeMap<i32, i64>>,
}

impl Progress {
    /// How many records are not finished, of those that are kept. Partitions that other runners of the group play are
    /// where it `committed`.
    #[must_use]
    pub fn lag(&self, kept: &BTreeMap<i32, Range<i64>>, committed: &BTreeMap<i32, i64>) -> i64 {
        let (own, begin) = (lock(&self.own), lock(&self.begin));
        let position = |partition| own.get(partition).or(committed.get(partition)).or(begin.get(partition));
        let lag = |(partition, kept): (_, &Range<i64>)| {
            kept.end - position(partition).copied().unwrap_or(kept.start).max(kept.start)
        };
        kept.iter().map(|kept| lag(kept).max(0)).sum()
    }
}

fn lock(offsets: &Mutex<BTreeMap<i32, i64>>) -> MutexGuard<'_, BTreeMap<i32, i64>> {
    offsets.lock().unwrap_or_else(PoisonError::into_inner)
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
    // Beside the records, so that those that wait do not delay it.
    let (leaving_in, leaving) = mpsc::channel(1);
    let reader = Reader { consumer, leaving: leaving_in, failed: None };
    let reading = tokio::spawn(reader.run(records_in, commits_in, stop.clone()));
    let player = Player { source, log, sink, progress, stop };
    player.run(records, leaving, commits).await;
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
            Ok((consumer, begin)) => {
                *lock(&progress.begin) = begin;
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
    log.create(&source.topic).await?;
    let mut consumer = log.consume(&source.topic, Some(&source.group), source.start).await?;
    let mut begin = BTreeMap::new();
    if source.start == Start::Latest && consumer.committed().await?.is_empty() {
        begin = consumer.kept().await?.into_iter().map(|(partition, kept)| (partition, kept.end)).collect();
    }
    Ok((consumer, begin))
}

struct Player {
    source: Source,
    log: Arc<dyn Log>,
    sink: Arc<dyn Sink>,
    progress: Arc<Progress>,
    stop: CancellationToken,
}

impl Player {
    async fn run(
        &self,
        mut records: mpsc::Receiver<Batch>,
        mut leaving: mpsc::Receiver<Leaving>,
        commits: mpsc::Sender<BTreeMap<i32, i64>>,
    ) {
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
                Some((partitions, answer)) = leaving.recv() => {
                    // What was read before must not come after.
                    while let Ok(batch) = records.try_recv() {
                        self.begin(batch, &mut queue, &mut offsets);
                    }
                    let _ = answer.send(self.forget(&partitions, &mut queue, &mut offsets));
                }
                Some((partition, offset, finished)) = under_way.next() => {
                    queue.finished(partition);
                    self.finish(&mut offsets, partition, offset, finished);
                }
                Some(batch) = records.recv(), if queue.waiting() < AHEAD => {
                    self.begin(batch, &mut queue, &mut offsets);
                }
                _ = commit.tick() => {
                    if let Some(next) = offsets.take_commit() {
                        let _ = commits.send(next).await;
                    }
                }
            }
        }
        drop(leaving);
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

    fn begin(&self, batch: Batch, queue: &mut Queue, offsets: &mut Offsets) {
        let mut own = lock(&self.progress.own);
        for delivered in batch.records {
            own.entry(delivered.partition).or_insert(delivered.offset);
            offsets.begin(delivered.partition, delivered.offset);
            queue.push(delivered);
        }
    }

    fn finish(&self, offsets: &mut Offsets, partition: i32, offset: i64, finished: bool) {
        if let Some(next) = finished.then(|| offsets.finish(partition, offset)).flatten() {
            lock(&self.progress.own).insert(partition, next);
        }
    }

    /// Others play these partitions from now on; answers the offsets from which.
    fn forget(&self, partitions: &[i32], queue: &mut Queue, offsets: &mut Offsets) -> BTreeMap<i32, i64> {
        let mut own = lock(&self.progress.own);
        let next = |partition: &i32| {
            own.remove(partition);
            queue.forget(*partition);
            Some((*partition, offsets.forget(*partition)?))
        };
        partitions.iter().filter_map(next).collect()
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
pub(crate) fn chain(error: &LogError) -> String {
    shared::error::Error::unavailable(error).to_string()
}
