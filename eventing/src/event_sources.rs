//! The event sources of a folder of manifests, run together.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use backend_log::{Log, LogError, Polled, Positions, Start};
use framework::supervise::{TaskHealth, TaskRegistry, TaskStatus};
use serde::Serialize;
use tokio::{
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    dead_letters::DeadLetters,
    failing::chain,
    manifest::{
        Destination, KafkaSink, KafkaSource, Manifest, ManifestError, PingSource, Reference, Resource,
        Service,
    },
    ping, pipeline,
    progress::Progress,
    sink::Sink,
    source::Source,
    warning::Warning,
};

/// How long the log may take to tell how far behind a source is; longer, and the status does without.
const LAG_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after a failure the dead letters are read anew.
const REOPEN_BACKOFF: Duration = Duration::from_secs(1);
/// Group and version of functions.
const SERVING: &str = "serving.knative.dev/v1";
/// Group and version of arrows to the log.
const EVENTING: &str = "eventing.knative.dev/v1alpha1";

/// The resources of a system, checked against each other.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    /// Functions.
    pub services: Vec<Service>,
    /// From the log.
    pub kafka_sources: Vec<Resource<KafkaSource>>,
    /// From the clock.
    pub ping_sources: Vec<Resource<PingSource>>,
    /// To the log.
    pub kafka_sinks: Vec<Resource<KafkaSink>>,
}

impl Resources {
    /// Reads manifests, each a file's name and text; names that lead nowhere are errors too.
    pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, ManifestError> {
        let (mut arrows, mut references) = (Self::default(), Vec::new());
        for (file, text) in files {
            for manifest in crate::manifest::read(file, text)? {
                match manifest {
                    Manifest::Service(service) => arrows.services.push(*service),
                    Manifest::KafkaSink(sink) => arrows.kafka_sinks.push(sink),
                    Manifest::PingSource(ping) => {
                        references.push((file, text, function(file, text, &ping.spec.sink)?));
                        arrows.ping_sources.push(ping);
                    }
                    Manifest::KafkaSource(source) => {
                        references.push((file, text, function(file, text, &source.spec.sink)?));
                        references.push((file, text, dead_letter_sink(file, text, &source)?));
                        arrows.kafka_sources.push(source);
                    }
                }
            }
        }
        match references.iter().find(|(_, _, reference)| !arrows.has(reference)) {
            Some((file, text, Reference { api_version, kind, name, .. })) => Err(at(
                file,
                text,
                &format!("name: {name}"),
                format!("there is no {api_version} {kind} `{name}`"),
            )),
            None => Ok(arrows),
        }
    }

    fn has(&self, reference: &Reference) -> bool {
        let name = &reference.name;
        match (reference.api_version.as_str(), reference.kind.as_str()) {
            (SERVING, "Service") => self.services.iter().any(|service| service.metadata.name == *name),
            (EVENTING, "KafkaSink") => self.kafka_sinks.iter().any(|sink| sink.metadata.name == *name),
            _ => false,
        }
    }

    /// The sources as they are run.
    #[must_use]
    pub fn sources(&self) -> Vec<Source> {
        let sources = self.kafka_sources.iter().flat_map(|source| {
            let topic = self.dead_letter_topic(source).unwrap_or_default();
            Source::of(&source.metadata, &source.spec, topic)
        });
        sources.collect()
    }

    /// Whether a source reads the topic.
    #[must_use]
    pub fn read_topic(&self, topic: &str) -> bool {
        self.kafka_sources.iter().any(|source| source.spec.topics.iter().any(|t| t == topic))
    }

    /// The topics that hold dead letters.
    #[must_use]
    pub fn dead_letter_topics(&self) -> Vec<String> {
        let mut topics: Vec<_> =
            self.kafka_sources.iter().filter_map(|s| self.dead_letter_topic(s)).map(str::to_owned).collect();
        topics.sort();
        topics.dedup();
        topics
    }

    /// The functions that KafkaSources lead to: the only ones that dead letters may be replayed to.
    #[must_use]
    pub fn fed_functions(&self) -> BTreeSet<String> {
        self.kafka_sources.iter().map(|source| source.spec.sink.reference.name.clone()).collect()
    }

    fn dead_letter_topic(&self, source: &Resource<KafkaSource>) -> Option<&str> {
        let sink = source.spec.delivery.as_ref()?.dead_letter_sink.as_ref()?;
        let sink = self.kafka_sinks.iter().find(|s| s.metadata.name == sink.reference.name)?;
        Some(&sink.spec.topic)
    }
}

/// Events of a source go to a function; a source that feeds a topic is not run here.
fn function(file: &str, text: &str, sink: &Destination) -> Result<Reference, ManifestError> {
    match sink.reference.kind.as_str() {
        "Service" => Ok(sink.reference.clone()),
        _ => Err(at(file, text, "sink:", "the `sink` of a source must be a Service".into())),
    }
}

/// Without one, an event that ran out of tries would be committed and lost.
fn dead_letter_sink(
    file: &str,
    text: &str,
    source: &Resource<KafkaSource>,
) -> Result<Reference, ManifestError> {
    let sink = source.spec.delivery.as_ref().and_then(|delivery| delivery.dead_letter_sink.as_ref());
    match sink {
        Some(sink) if sink.reference.kind == "KafkaSink" => Ok(sink.reference.clone()),
        _ => Err(at(
            file,
            text,
            "delivery:",
            "a KafkaSource needs a `delivery.deadLetterSink` that is a KafkaSink".into(),
        )),
    }
}

fn at(file: &str, text: &str, mark: &str, why: String) -> ManifestError {
    let line = text.lines().position(|line| line.trim() == mark).map_or(1, |at| at as u64 + 1);
    ManifestError { file: file.to_owned(), line, why }
}

/// Event sources that are running.
pub struct RunningSources {
    arrows: Vec<RunningSource>,
    /// What else is supervised, by name.
    others: TaskRegistry,
    tasks: TaskTracker,
    letters: Arc<std::sync::atomic::AtomicUsize>,
}

struct RunningSource {
    source: Source,
    progress: Arc<Progress>,
    log: Arc<dyn Log>,
    /// Opened when first needed.
    positions: Arc<Mutex<Option<Box<dyn Positions>>>>,
}

/// What an arrow did and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// The source's name.
    pub name: String,
    /// The function it leads to.
    pub function: String,
    /// Records that are not finished; absent while the log cannot tell.
    pub lag: Option<i64>,
    /// Events under way.
    pub under_way: usize,
    /// Events that arrived since the start.
    pub delivered: u64,
    /// Tries after the first since the start.
    pub retried: u64,
    /// Events that went to the dead letter since the start.
    pub dead: u64,
    /// Restarts after panics since the start.
    pub restarts: u64,
    /// What fails now, or failed last; null when nothing did.
    pub last_error: Option<String>,
}

/// Runs all event sources until `stop`. Of each new dead letter `news` gets a line.
pub fn run(
    arrows: &Resources,
    log: &Arc<dyn Log>,
    sink: &Arc<dyn Sink>,
    news: mpsc::UnboundedSender<String>,
    stop: &CancellationToken,
) -> RunningSources {
    let tasks = TaskTracker::new();
    let mut running = RunningSources {
        arrows: Vec::new(),
        others: TaskRegistry::default(),
        tasks: tasks.clone(),
        letters: Arc::default(),
    };
    for source in arrows.sources() {
        let progress = Arc::new(Progress::default());
        tasks.spawn(pipeline::run(source.clone(), log.clone(), sink.clone(), progress.clone(), stop.clone()));
        running.arrows.push(RunningSource { source, progress, log: log.clone(), positions: Arc::default() });
    }
    for ping in &arrows.ping_sources {
        let health = running.others.register(&ping.metadata.name);
        tasks.spawn(ping::run(ping.metadata.clone(), ping.spec.clone(), sink.clone(), health, stop.clone()));
    }
    for topic in arrows.dead_letter_topics() {
        let name = format!("dead-letters {topic}");
        let (others, health) = (running.others.clone(), running.others.register(&name));
        let (log, letters, news, stop) = (log.clone(), running.letters.clone(), news.clone(), stop.clone());
        tasks.spawn(async move {
            let start = || watch(log.clone(), topic.clone(), letters.clone(), news.clone(), health.clone());
            tokio::select! {
                () = stop.cancelled() => {}
                () = others.supervise(&name, start) => {}
            }
        });
    }
    tasks.close();
    running
}

impl RunningSources {
    /// What each arrow did.
    pub async fn status(&self) -> Vec<SourceStatus> {
        futures_util::future::join_all(self.arrows.iter().map(RunningSource::status)).await
    }

    /// How the tasks fare that are no arrows from the log: PingSources and watchers of dead letters.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskStatus> {
        self.others.status()
    }

    /// Dead letters that nobody took care of yet.
    #[must_use]
    pub fn dead_letters(&self) -> usize {
        self.letters.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Waits until all ended, after `stop`.
    pub async fn ended(&self) {
        self.tasks.wait().await;
    }
}

impl RunningSource {
    async fn status(&self) -> SourceStatus {
        use std::sync::atomic::Ordering::Relaxed;
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

/// Follows a topic of dead letters for ever.
async fn watch(
    log: Arc<dyn Log>,
    topic: String,
    open: Arc<std::sync::atomic::AtomicUsize>,
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
    open: &std::sync::atomic::AtomicUsize,
    news: &mpsc::UnboundedSender<String>,
    health: &TaskHealth,
) -> Result<(), LogError> {
    log.create(topic).await?;
    let mut consumer = log.consume(topic, None, Start::Earliest).await?;
    let mut letters = DeadLetters::default();
    let mut old = true;
    loop {
        let mut records = consumer.poll_now(DEAD_LETTER_PAGE).await?;
        health.recovered();
        if records.is_empty() {
            old = false;
            // Nothing is revoked from a reader without a group.
            let Polled::Records(new) = consumer.poll(DEAD_LETTER_PAGE).await? else { continue };
            records = new;
        }
        for delivered in records {
            if let Some(letter) = letters.take(&delivered, topic).filter(|_| !old) {
                let code = letter.code().unwrap_or("no answer");
                let _ = news.send(format!("dead letter {}: {} said {code}", letter.id, letter.function()));
            }
        }
        open.store(letters.len(), std::sync::atomic::Ordering::Relaxed);
    }
}
