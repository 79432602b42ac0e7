//! One replica that takes requests: its connections, its requests in flight and whether it still answers.
//! Knows nothing of the pool that it is in.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{HeaderValue, Request, Response, StatusCode, Uri, header::HOST};
use http_body_util::Full;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    connection::{Connections, Failure},
    process::Launched,
    status::ReplicaStatus,
};

/// A process that answers requests.
pub(crate) struct Replica {
    pid: u32,
    started: DateTime<Utc>,
    connections: Connections,
    /// Changed only under the pool's lock.
    in_flight: AtomicU32,
    /// Answers to requests, probes not included: any of them proves that the process is alive.
    answers: AtomicU64,
    /// The last liveness probe failed; others are preferred.
    suspect: AtomicBool,
    /// Cancelled once it gets no more requests.
    pub(crate) draining: CancellationToken,
    /// Cancelled once its liveness probes failed: what it was sent is given up.
    pub(crate) hung: CancellationToken,
    drained: Notify,
}

impl Replica {
    pub(crate) fn new(process: &Launched, started: DateTime<Utc>) -> Self {
        let hung = CancellationToken::new();
        Self {
            pid: process.pid,
            started,
            connections: Connections::new(process.address, hung.clone()),
            in_flight: AtomicU32::new(0),
            answers: AtomicU64::new(0),
            suspect: AtomicBool::new(false),
            draining: CancellationToken::new(),
            hung,
            drained: Notify::new(),
        }
    }

    /// Requests in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Answers to requests so far.
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Relaxed)
    }

    /// Those that answer come first, then those with fewer requests.
    pub(crate) fn preference(&self) -> (bool, u32) {
        (self.suspect.load(Relaxed), self.in_flight())
    }

    pub(crate) fn set_suspect(&self, suspect: bool) {
        self.suspect.store(suspect, Relaxed);
    }

    /// Counts a request in. Called under the pool's lock.
    pub(crate) fn take_permit(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// Counts a request out. Called under the pool's lock.
    pub(crate) fn return_permit(&self) {
        if self.in_flight.fetch_sub(1, Relaxed) == 1 && self.draining.is_cancelled() {
            self.drained.notify_one();
        }
    }

    /// Ends once it gets no more requests and has answered all.
    pub(crate) async fn drained(&self) {
        self.draining.cancelled().await;
        while self.in_flight() > 0 {
            self.drained.notified().await;
        }
        self.connections.close_idle();
    }

    /// Sends a request of a client.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Failure> {
        let answer = self.connections.send(request).await;
        if answer.is_ok() {
            self.answers.fetch_add(1, Relaxed);
        }
        answer
    }

    /// `GET path`, as a kubelet's probe asks. The connection waits in the kernel until the process takes it.
    pub(crate) async fn probe(&self, path: &Uri) -> Result<StatusCode, Failure> {
        let mut request = Request::new(Full::<Bytes>::default());
        *request.uri_mut() = path.clone();
        request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
        self.connections.send(request).await.map(|answer| answer.status())
    }

    pub(crate) fn status(&self) -> ReplicaStatus {
        ReplicaStatus { pid: self.pid, in_flight: self.in_flight(), started: self.started }
    }
}

/// Whether nobody listens there any more; anything else (no file descriptors, say) is this side's fault.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | ConnectionAborted)
}
