//! An in-memory log, a function as a closure, and helpers for the tests.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use backend_log::{
    Appender, Consumer, Delivered, Log, LogError, PartitionOffsets, Polled, Positions, Start, Watermarks,
};
use bytes::Bytes;
use domain::{Failure, Store};
use event::Record;
use eventing::{
    event_sources::Resources,
    pipeline,
    progress::Progress,
    sink::{Sink, SinkError},
    source::Source,
};
use http::{Request, Response};
use tokio::{sync::Notify, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

/// The functions that the project's event sources send to.
pub const SERVICES: &str = "
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: count}
spec: {template: {spec: {containers: [{image: count}]}}}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: store}
spec: {template: {spec: {containers: [{image: store}]}}}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: batch}
spec: {template: {spec: {containers: [{image: batch}]}}}
";

/// The project's own manifests of event sources, with these functions.
pub fn arrows() -> Resources {
    Resources::read([
        ("services.yaml", SERVICES),
        ("log-to-count.yaml", include_str!("../../log-to-count.yaml")),
        ("log-to-store.yaml", include_str!("../../log-to-store.yaml")),
        ("minute-to-batch.yaml", include_str!("../../minute-to-batch.yaml")),
        ("dead-letter.yaml", include_str!("../../dead-letter.yaml")),
    ])
    .unwrap()
}

/// The project's source with this name.
pub fn source(name: &str) -> Source {
    arrows().sources().into_iter().find(|source| source.name == name).unwrap()
}

#[derive(Default)]
struct State {
    topics: BTreeMap<String, Vec<Delivered>>,
    committed: PartitionOffsets,
}

/// An in-memory log with four partitions.
#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
    news: Notify,
    /// Number of records that consumers were given.
    pub given: AtomicUsize,
    /// Whether appends fail.
    pub broken: AtomicBool,
    /// Maximum size of a record in bytes: appending a larger one panics. Zero means no limit.
    pub largest: AtomicUsize,
    /// Number of upcoming reads that fail, each after it lost its page.
    pub failing: AtomicUsize,
    /// Number of upcoming reads that panic.
    pub panicking: AtomicUsize,
    /// A partition to revoke, because another member needs it.
    wanted: Mutex<Option<i32>>,
    /// Partitions that other members own, each with its committed offset at the time of release.
    pub given_up: Mutex<PartitionOffsets>,
    /// Number of polls of paused consumers.
    pub rests: AtomicUsize,
}

impl Memory {
    pub fn put(&self, topic: &str, record: Record) {
        let mut state = self.state.lock().unwrap();
        let records = state.topics.entry(topic.to_owned()).or_default();
        let partition = record.key.iter().flatten().map(|byte| i32::from(*byte)).sum::<i32>() % 4;
        let offset = records.iter().filter(|d| d.partition == partition).count() as i64;
        records.push(Delivered { partition, offset, time_ms: 1_700_000_000_000, record });
        self.news.notify_waiters();
    }

    pub fn records(&self, topic: &str) -> Vec<Delivered> {
        self.state.lock().unwrap().topics.get(topic).cloned().unwrap_or_default()
    }

    /// Makes another member of the group request the partition.
    pub fn want(&self, partition: i32) {
        *self.wanted.lock().unwrap() = Some(partition);
        self.news.notify_waiters();
    }

    pub fn committed(&self) -> PartitionOffsets {
        self.state.lock().unwrap().committed.clone()
    }

    pub fn ends(&self, topic: &str) -> PartitionOffsets {
        self.records(topic).iter().map(|d| (d.partition, d.offset + 1)).collect()
    }

    pub fn kept(&self, topic: &str) -> Watermarks {
        self.ends(topic).into_iter().map(|(partition, end)| (partition, 0..end)).collect()
    }
}

/// The log, shared between a test and the sources that it runs.
#[derive(Clone, Default)]
pub struct Shared(pub Arc<Memory>);

#[async_trait]
impl Store for Shared {
    async fn ready(&self) -> Result<(), Failure> {
        Ok(())
    }
}

#[async_trait]
impl Appender for Shared {
    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<(), Failure> {
        if self.0.broken.load(SeqCst) {
            return Err(Failure::unavailable("broken by the test"));
        }
        let largest = self.0.largest.load(SeqCst);
        assert!(largest == 0 || records.iter().all(|r| r.size() <= largest), "a record is too large");
        records.into_iter().for_each(|record| self.0.put(topic, record));
        Ok(())
    }
}

#[async_trait]
impl Log for Shared {
    async fn consume(
        &self,
        topic: &str,
        group: Option<&str>,
        start: Start,
    ) -> Result<Box<dyn Consumer>, LogError> {
        let next = if start == Start::Latest { self.0.records(topic).len() } else { 0 };
        let committed = if group.is_some() { self.0.committed() } else { PartitionOffsets::default() };
        let group = group.is_some();
        Ok(Box::new(Member {
            log: self.0.clone(),
            topic: topic.to_owned(),
            group,
            committed,
            next,
            leaving: None,
            paused: false,
        }))
    }
}

struct Member {
    log: Arc<Memory>,
    topic: String,
    group: bool,
    committed: PartitionOffsets,
    next: usize,
    leaving: Option<i32>,
    paused: bool,
}

#[async_trait]
impl Consumer for Member {
    async fn poll(&mut self, max: usize) -> Result<Polled, LogError> {
        let log = self.log.clone();
        if let Some(partition) = self.leaving.take() {
            let committed = log.committed().get(&partition).copied().unwrap_or(0);
            log.given_up.lock().unwrap().insert(partition, committed);
        }
        if self.paused {
            log.rests.fetch_add(1, SeqCst);
        }
        loop {
            let news = log.news.notified();
            let wanted = if self.group { log.wanted.lock().unwrap().take() } else { None };
            if let Some(partition) = wanted {
                self.leaving = Some(partition);
                return Ok(Polled::Revoked(vec![partition]));
            }
            if !self.paused {
                let records = self.poll_now(max).await?;
                if !records.is_empty() {
                    return Ok(Polled::Records(records));
                }
            }
            news.await;
        }
    }

    async fn poll_now(&mut self, max: usize) -> Result<Vec<Delivered>, LogError> {
        let mut records = Vec::new();
        let is_new = |d: &Delivered| self.committed.get(&d.partition).is_none_or(|next| d.offset >= *next);
        for delivered in self.log.records(&self.topic).into_iter().skip(self.next) {
            if records.len() == max {
                break;
            }
            self.next += 1;
            let is_here = !self.log.given_up.lock().unwrap().contains_key(&delivered.partition);
            if is_here && is_new(&delivered) {
                records.push(delivered);
            }
        }
        let is_next = |n: &AtomicUsize| n.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
        if self.group && !records.is_empty() && is_next(&self.log.failing) {
            return Err(LogError::Watch(notify::Error::generic("a page was lost")));
        }
        assert!(!(self.group && is_next(&self.log.panicking)), "the log panics");
        self.log.given.fetch_add(records.len(), SeqCst);
        Ok(records)
    }

    fn pause(&mut self) {
        self.paused = true;
    }

    fn resume(&mut self) {
        self.paused = false;
    }

    async fn commit(&mut self, next: &PartitionOffsets) -> Result<(), LogError> {
        self.log.state.lock().unwrap().committed.extend(next.iter());
        Ok(())
    }
}

#[async_trait]
impl Positions for Member {
    async fn committed(&mut self) -> Result<PartitionOffsets, LogError> {
        Ok(if self.group { self.log.committed() } else { PartitionOffsets::default() })
    }

    async fn watermarks(&mut self) -> Result<Watermarks, LogError> {
        Ok(self.log.kept(&self.topic))
    }
}

type Answer = Result<Response<Bytes>, SinkError>;
type Respond = dyn Fn(&Request<Bytes>) -> Answer + Send + Sync;

/// A function that responds as the test specifies, and records the requests.
pub struct Function {
    answer: Box<Respond>,
    takes: Duration,
    pub requests: Mutex<Vec<(String, Request<Bytes>)>>,
    under_way: Mutex<BTreeMap<String, usize>>,
    pub most: AtomicUsize,
    pub most_of_a_partition: AtomicUsize,
}

impl Function {
    pub fn new(
        takes: Duration,
        answer: impl Fn(&Request<Bytes>) -> Answer + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            answer: Box::new(answer),
            takes,
            requests: Mutex::default(),
            under_way: Mutex::default(),
            most: AtomicUsize::new(0),
            most_of_a_partition: AtomicUsize::new(0),
        })
    }

    /// The values of a header in the requests, in order.
    pub fn heard(&self, header: &str) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|(_, request)| value(request, header)).collect()
    }
}

#[async_trait]
impl Sink for Function {
    async fn send(&self, function: &str, request: Request<Bytes>) -> Answer {
        let partition = value(&request, "ce-knativekafkapartition");
        {
            let mut under_way = self.under_way.lock().unwrap();
            let of_it = under_way.entry(partition.clone()).or_default();
            *of_it += 1;
            self.most_of_a_partition.fetch_max(*of_it, SeqCst);
            self.most.fetch_max(under_way.values().sum(), SeqCst);
        }
        self.requests.lock().unwrap().push((function.to_owned(), request.clone()));
        sleep(self.takes).await;
        *self.under_way.lock().unwrap().get_mut(&partition).unwrap() -= 1;
        (self.answer)(&request)
    }
}

/// A header's value; empty if the header is missing.
pub fn value(request: &Request<Bytes>, header: &str) -> String {
    request.headers().get(header).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
}

/// A response without a body.
pub fn status(code: u16) -> Answer {
    Ok(Response::builder().status(code).body(Bytes::new()).unwrap())
}

/// The record of an event whose id and key are given.
pub fn event(id: &str, key: &str) -> Record {
    let headers = [
        ("ce_specversion", "1.0"),
        ("ce_id", id),
        ("ce_source", "/test"),
        ("ce_type", "test"),
        ("ce_partitionkey", key),
        ("content-type", "application/json"),
    ];
    Record {
        key: Some(Bytes::from(key.to_owned())),
        headers: headers.map(|(n, v)| (n.to_owned(), Some(Bytes::from(v.to_owned())))).into(),
        value: Some(Bytes::from_static(b"{}")),
    }
}

/// A running source.
pub struct Played {
    pub stop: CancellationToken,
    pub progress: Arc<Progress>,
    pub task: JoinHandle<()>,
}

pub fn run(source: Source, log: &Shared, function: &Arc<Function>) -> Played {
    let (stop, progress) = (CancellationToken::new(), Arc::new(Progress::default()));
    let playing =
        pipeline::run(source, Arc::new(log.clone()), function.clone(), progress.clone(), stop.clone());
    Played { stop, progress, task: tokio::spawn(playing) }
}

impl Played {
    pub async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Waits until the condition holds. Panics after ten minutes of the test's clock.
pub async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..120_000 {
        if is_so() {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("it never came about that {what}");
}
