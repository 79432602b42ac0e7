//! The system of one run: replicas of each function, the event sources twice, and what kills and restarts them.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, LazyLock, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use event::Record;
use eventing::{
    event_sources::{self, Resources, RunningSources},
    files, ping,
    replay::replay,
    sink::{Sink, SinkError},
};
use framework::{
    router::{Router, State},
    supervise::TaskHealth,
};
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    checks::Checks,
    process::Process,
    stores::Seen,
    world::{Defect, Fault, Seam, World, lock},
};

const FUNCTIONS: [&str; 5] = ["ingest", "count", "store", "batch", "analytics"];
/// Replicas of each function, and processes of the event sources.
const REPLICAS: usize = 2;
/// Milliseconds until a dead process has a successor, at most.
const RESTART_MS: u64 = 2_000;
/// Milliseconds until the log takes a dead consumer for dead, at most.
const SESSION_MS: u64 = 5_000;

/// The project's own manifests, with a tick every second.
static RESOURCES: LazyLock<Resources> = LazyLock::new(|| {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let services = FUNCTIONS.map(|name| project.join("functions").join(name).join("service.yaml"));
    let mut texts = files::read(&services).unwrap();
    texts.extend(files::read(&[project.join("eventing")]).unwrap());
    let second = |text: &String| text.replace("\"* * * * *\"", "\"* * * * * *\"");
    let texts: Vec<_> = texts.iter().map(|(file, text)| (file.as_str(), second(text))).collect();
    Resources::read(texts.iter().map(|(file, text)| (*file, text.as_str()))).unwrap()
});

type Call = dyn Fn(Request<Bytes>) -> BoxFuture<'static, Response<Bytes>> + Send + Sync;

/// One process of a function.
#[derive(Clone)]
struct Replica {
    process: Arc<Process>,
    call: Arc<Call>,
}

impl Replica {
    fn new<S: State + Send + Sync + 'static>(process: Arc<Process>, router: Router<S>) -> Self {
        let router = Arc::new(router);
        let call = move |request| {
            let router = router.clone();
            let answer: BoxFuture<'static, _> = Box::pin(async move { router.call(request).await });
            answer
        };
        Self { process, call: Arc::new(call) }
    }
}

/// All processes.
pub struct System {
    pub world: Arc<World>,
    pub checks: Arc<Checks>,
    replicas: Mutex<BTreeMap<(&'static str, usize), Replica>>,
    sources: Mutex<BTreeMap<usize, Arc<Process>>>,
}

impl System {
    pub fn start(world: &Arc<World>, checks: &Arc<Checks>) -> Arc<Self> {
        let system = Arc::new(Self {
            world: world.clone(),
            checks: checks.clone(),
            replicas: Mutex::default(),
            sources: Mutex::default(),
        });
        for function in FUNCTIONS {
            for slot in 0..REPLICAS {
                tokio::spawn(system.clone().keep_replica(function, slot));
            }
        }
        for slot in 0..REPLICAS {
            tokio::spawn(system.clone().keep_sources(slot));
        }
        tokio::spawn(system.clone().make_trouble());
        system
    }

    fn seen<S: Clone>(&self, store: &S, process: &Arc<Process>) -> Arc<Seen<S>> {
        Arc::new(Seen { store: store.clone(), process: process.clone(), checks: self.checks.clone() })
    }

    fn replica(&self, function: &'static str) -> Replica {
        let process = Process::new(&self.world, function);
        let Checks { log, views, master, topic, .. } = &*self.checks;
        let log = log.for_process(process.number);
        match function {
            "ingest" => {
                Replica::new(process.clone(), ingest::routes(self.seen(&log, &process), topic.clone()))
            }
            "count" => Replica::new(process.clone(), count::routes(self.seen(views, &process))),
            "store" => Replica::new(process.clone(), store::routes(self.seen(master, &process))),
            "batch" => Replica::new(process.clone(), batch::routes(self.seen(master, &process))),
            _ => {
                let (speed, batch) = (self.seen(views, &process), self.seen(master, &process));
                Replica::new(process.clone(), analytics::routes(speed, batch))
            }
        }
    }

    async fn keep_replica(self: Arc<Self>, function: &'static str, slot: usize) {
        loop {
            let replica = self.replica(function);
            let dead = replica.process.dead.clone();
            lock(&self.replicas).insert((function, slot), replica);
            dead.cancelled().await;
            lock(&self.replicas).remove(&(function, slot));
            sleep(self.world.within_ms(RESTART_MS)).await;
        }
    }

    async fn keep_sources(self: Arc<Self>, slot: usize) {
        loop {
            let process = Process::new(&self.world, "sources");
            let log = self.checks.log.for_process(process.number);
            let sink: Arc<dyn Sink> = Arc::new(Sent { system: self.clone(), process: process.clone() });
            let (stop, (news, _)) = (CancellationToken::new(), mpsc::unbounded_channel());
            let mut resources = RESOURCES.clone();
            let ping = resources.ping_sources.pop().unwrap();
            let _running: RunningSources =
                event_sources::run(&resources, &(self.seen(&log, &process) as _), &sink, news, &stop);
            let world = self.world.clone();
            tokio::spawn(ping::run_by(
                Arc::new(move || world.now()),
                ping.metadata,
                ping.spec,
                sink,
                Arc::new(TaskHealth::default()),
                stop.clone(),
            ));
            lock(&self.sources).insert(slot, process.clone());
            process.dead.cancelled().await;
            lock(&self.sources).remove(&slot);
            // Ends its timers. It makes no call any more, so that it has no other effect.
            stop.cancel();
            let (log, session) = (log.clone(), self.world.within_ms(SESSION_MS));
            tokio::spawn(async move {
                sleep(session).await;
                log.expire(process.number);
            });
            sleep(self.world.within_ms(RESTART_MS)).await;
        }
    }

    /// Kills processes, expires living consumers, and lets the log forget what all groups have read.
    async fn make_trouble(self: Arc<Self>) {
        while !self.world.is_calm() {
            sleep(self.world.within_ms(4_000)).await;
            let victims: Vec<_> = {
                let replicas = lock(&self.replicas);
                let sources = lock(&self.sources);
                replicas.values().map(|r| r.process.clone()).chain(sources.values().cloned()).collect()
            };
            let sources: Vec<_> = lock(&self.sources).values().cloned().collect();
            match self.world.below(4) {
                0 if !sources.is_empty() => {
                    let process = &sources[self.world.below(sources.len())];
                    self.world.cover(Seam::Group, Fault::Expired);
                    self.world.log(&process.name, format_args!("is expired"));
                    self.checks.log.expire(process.number);
                }
                1 => self.checks.log.truncate(&self.checks.topic),
                2 => {
                    let garbage = [self.foreign_record()];
                    let append =
                        backend_log::Appender::append(&self.checks.log, &self.checks.topic, garbage.into());
                    append.await.unwrap();
                }
                _ if !victims.is_empty() => victims[self.world.below(victims.len())].die(),
                _ => {}
            }
        }
    }

    /// A record that another producer wrote, and that is no user.
    fn foreign_record(&self) -> Record {
        self.world.log("foreign", format_args!("appends a record that is no user"));
        let value = ["no user", "{\"id\":1}", ""][self.world.below(3)];
        Record { key: Some(value.into()), headers: Vec::new(), value: Some(value.into()) }
    }

    /// Sends a request to a replica of a function, which may die meanwhile. Its handler goes on if the caller stops
    /// waiting, as in the server.
    pub async fn call(&self, function: &str, request: Request<Bytes>) -> Option<Response<Bytes>> {
        let replicas: Vec<_> = {
            let replicas = lock(&self.replicas);
            replicas.iter().filter(|((name, _), _)| *name == function).map(|(_, r)| r.clone()).collect()
        };
        if replicas.is_empty() {
            sleep(self.world.within_ms(200)).await;
            return None;
        }
        let Replica { process, call } = &replicas[self.world.below(replicas.len())];
        let answer = tokio::spawn(call(request));
        tokio::select! {
            biased;
            () = process.dead.cancelled() => None,
            answer = answer => answer.ok(),
        }
    }

    /// Replays the topic to `count` beside its source.
    pub async fn replay(self: Arc<Self>) {
        let process = Process::new(&self.world, "replay");
        let log = self.seen(&self.checks.log.for_process(process.number), &process);
        let sink = Sent { system: self.clone(), process: process.clone() };
        let source = RESOURCES.sources().into_iter().find(|source| source.function == "count").unwrap();
        tokio::select! {
            biased;
            () = process.dead.cancelled() => {}
            replayed = replay(&source, backend_log::Start::Earliest, &*log, &sink, |_| {}) => {
                let replayed = replayed.map_err(|error| error.to_string());
                self.world.log(&process.name, format_args!("{replayed:?}"));
            }
        }
    }

    /// A view of the log for whoever repairs, and the sink to send with.
    pub fn operator(self: &Arc<Self>) -> (Arc<Seen<memory::MemoryLog>>, impl Sink + use<>) {
        let process = Process::new(&self.world, "operator");
        let log = self.seen(&self.checks.log.for_process(process.number), &process);
        (log, Sent { system: self.clone(), process })
    }

    /// Whether all processes run.
    pub fn is_up(&self) -> bool {
        lock(&self.replicas).len() == FUNCTIONS.len() * REPLICAS && lock(&self.sources).len() == REPLICAS
    }
}

/// The way from a process to functions.
struct Sent {
    system: Arc<System>,
    process: Arc<Process>,
}

#[async_trait]
impl Sink for Sent {
    async fn send(&self, function: &str, request: Request<Bytes>) -> Result<Response<Bytes>, SinkError> {
        const FAULTS: [Fault; 3] = [Fault::Refused, Fault::AnswerLost, Fault::Delayed];
        let (system, function) = (self.system.clone(), function.to_owned());
        let error = |why: &'static str| SinkError(why.to_owned());
        let send = async move {
            let answer =
                system.call(&function, request).await.ok_or_else(|| error("the connection was reset"));
            let refuses = |answer: &Response<Bytes>| answer.status() == StatusCode::UNPROCESSABLE_ENTITY;
            match answer {
                Ok(mut answer) if system.world.has(Defect::RetriesRefusals) && refuses(&answer) => {
                    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                    Ok(answer)
                }
                answer => answer,
            }
        };
        self.process.call(Seam::Request, &FAULTS, send, error).await
    }

    async fn answers(&self, function: &str) -> bool {
        let request = Request::get("/healthz").body(Bytes::new()).unwrap();
        self.process.alive(self.system.call(function, request)).await.is_some()
    }
}
