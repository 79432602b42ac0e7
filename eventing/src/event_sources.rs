//! Runs the event sources of a system together, with their status and a watcher of their dead letters.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use backend_log::{Log, LogError, Polled, Positions, Start};
use framework::supervise::{TaskHealth, TaskRegistry, TaskStatus};
use serde::Serialize;
use tokio::{
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use crate::resources::Resources;
use crate::{
    dead_letters::DeadLetters, failing::chain, ping, pipeline, progress::Progress, sink::Sink,
    source::Source, warning::Warning,
};

/// Timeout of the question for a source's lag; the status goes without it then.
const LAG_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay before the dead letters are read again after a failure.
const REOPEN_BACKOFF: Duration = Duration::from_secs(1);
/// Event sources that are running.
pub struct RunningSources {
    sources: Vec<RunningSource>,
    /// Other supervised tasks: PingSources and dead-letter watchers.
    others: TaskRegistry,
    tasks: TaskTracker,
    /// Open dead letters.
    dead_letters: Arc<AtomicUsize>,
}

struct RunningSource {
    source: Source,
    progress: Arc<Progress>,
    log: Arc<dyn Log>,
    /// Opened when first needed. Its lock is taken before those of `Progress`, by the task that asks the log; nobody who
    /// holds one of theirs waits for it.
    positions: Arc<Mutex<Option<Box<dyn Positions>>>>,
}

/// The status of a KafkaSource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// The source's name.
    pub name: String,
    /// The function that gets its events.
    pub function: String,
    /// Number of unfinished records; absent while the log cannot tell.
    pub lag: Option<i64>,
    /// Events in flight.
    pub under_way: usize,
    /// Events delivered since the start.
    pub delivered: u64,
    /// Attempts after the first since the start.
    pub retried: u64,
    /// Events that became dead letters since the start.
    pub dead: u64,
    /// Restarts after panics since the start.
    pub restarts: u64,
    /// The current or last failure; null if there was none.
    pub last_error: Option<String>,
}

/// Runs all event sources until `stop`. Sends a line to `news` for each new dead letter.
pub fn run(
    resources: &Resources,
    log: &Arc<dyn Log>,
    sink: &Arc<dyn Sink>,
    news: mpsc::UnboundedSender<String>,
    stop: &CancellationToken,
) -> RunningSources {
    let tasks = TaskTracker::new();
    let mut running = RunningSources {
        sources: Vec::new(),
        others: TaskRegistry::default(),
        tasks: tasks.clone(),
        dead_letters: Arc::default(),
    };
    for source in resources.sources() {
        let progress = Arc::new(Progress::default());
        tasks.spawn(pipeline::run(source.clone(), log.clone(), sink.clone(), progress.clone(), stop.clone()));
        running.sources.push(RunningSource { source, progress, log: log.clone(), positions: Arc::default() });
    }
    for ping in &resources.ping_sources {
        let health = running.others.register(&ping.metadata.name);
        tasks.spawn(ping::run(ping.metadata.clone(), ping.spec.clone(), sink.clone(), health, stop.clone()));
    }
    for topic in resources.dead_letter_topics() {
        let name = format!("dead-letters {topic}");
        let (others, health) = (running.others.clone(), running.others.register(&name));
        let (log, open, news, stop) = (log.clone(), running.dead_letters.clone(), news.clone(), stop.clone());
        tasks.spawn(async move {
            let start = || watch(log.clone(), topic.clone(), open.clone(), news.clone(), health.clone());
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = others.supervise(&name, start) => {}
            }
        });
    }
    tasks.close();
    running
}

impl RunningSources {
    /// The status of each KafkaSource.
    pub async fn status(&self) -> Vec<SourceStatus> {
        futures_util::future::join_all(self.sources.iter().map(RunningSource::status)).await
    }

    /// The status of the other tasks: PingSources and dead-letter watchers.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskStatus> {
        self.others.status()
    }

    /// Number of open dead letters.
    #[must_use]
    pub fn dead_letters(&self) -> usize {
        self.dead_letters.load(Relaxed)
    }

    /// Waits until all tasks have ended, after `stop`.
    pub async fn ended(&self) {
        self.tasks.wait().await;
    }
}

impl RunningSource {
    async fn status(&self) -> SourceStatus {
        let lag = self.lag().await;
        SourceStatus {
            name: self.source.name.clone(),
            function: self.source.function.clone(),
            lag,
            under_way: self.progress.under_way.load(Relaxed),
            delivered: self.progress.delivered.load(Relaxed),
            retried: self.progress.retried.load(Relaxed),
            dead: self.progress.dead.load(Relaxed),
            restarts: self.progress.health.restarts(),
            last_error: self.progress.health.last_error(),
        }
    }

    /// `None` while the log cannot tell. Runs in a task of its own, which ends even if the caller is gone: positions that
    /// were abandoned in the middle of a question cannot be asked again.
    async fn lag(&self) -> Option<i64> {
        let mut positions = timeout(LAG_TIMEOUT, self.positions.clone().lock_owned()).await.ok()?;
        let (source, log, progress) = (self.source.clone(), self.log.clone(), self.progress.clone());
        let asked = tokio::spawn(async move {
            let opened = positions.take();
            // Positions that failed are not put back.
            let (working, lag) = lag(opened, &source, &*log, &progress).await.ok()?;
            *positions = Some(working);
            Some(lag)
        });
        timeout(LAG_TIMEOUT, asked).await.ok()?.ok()?
    }
}

async fn lag(
    opened: Option<Box<dyn Positions>>,
    source: &Source,
    log: &dyn Log,
    progress: &Progress,
) -> Result<(Box<dyn Positions>, i64), LogError> {
    let mut positions = match opened {
        Some(positions) => positions,
        None => log.positions(&source.topic, &source.group).await?,
    };
    // The committed offsets first: what is finished in between makes the lag no smaller than it was.
    let committed = positions.committed().await?;
    let lag = progress.lag(&positions.watermarks().await?, &committed);
    Ok((positions, lag))
}

/// Maximum number of dead letters per read.
const DEAD_LETTER_PAGE: usize = 1_000;

/// Follows a topic of dead letters for ever, counting the open ones.
async fn watch(
    log: Arc<dyn Log>,
    topic: String,
    open: Arc<AtomicUsize>,
    news: mpsc::UnboundedSender<String>,
    health: Arc<TaskHealth>,
) {
    let mut warning = Warning::default();
    loop {
        if let Err(error) = follow(&*log, &topic, &open, &news, &health).await {
            let error = chain(&error);
            if let Some(suppressed) = warning.due(&error) {
                tracing::warn!(topic, error, suppressed, "cannot read the dead letters now");
            }
            health.failed(error);
        }
        tokio::time::sleep(REOPEN_BACKOFF).await;
    }
}

async fn follow(
    log: &dyn Log,
    topic: &str,
    open: &AtomicUsize,
    news: &mpsc::UnboundedSender<String>,
    health: &TaskHealth,
) -> Result<(), LogError> {
    log.create(topic).await?;
    let mut consumer = log.consume(topic, None, Start::Earliest).await?;
    let mut letters = DeadLetters::default();
    // Until the end is reached, they are from before the start, and no news.
    let mut is_old = true;
    loop {
        let mut records = consumer.poll_now(DEAD_LETTER_PAGE).await?;
        health.recovered();
        if records.is_empty() {
            is_old = false;
            // Nothing is revoked from a reader without a group.
            let Polled::Records(new) = consumer.poll(DEAD_LETTER_PAGE).await? else { continue };
            records = new;
        }
        for delivered in records {
            if let Some(letter) = letters.take(&delivered, topic).filter(|_| !is_old) {
                let code = letter.code().unwrap_or("no answer");
                let _ = news.send(format!("dead letter {}: {} said {code}", letter.id, letter.function()));
            }
        }
        open.store(letters.len(), Relaxed);
    }
}
