//! One ready replica: its connections, its permits and its liveness. Independent of the pool.

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
    /// Number of responses, not counting probes. Any of them proves that the process is alive.
    answers: AtomicU64,
    /// The last liveness probe failed, so other replicas are preferred.
    suspect: AtomicBool,
    /// Cancelled when it gets no further requests.
    pub(crate) draining: CancellationToken,
    /// Cancelled when its liveness probes failed: aborts the requests in flight.
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

    /// Number of requests in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Number of responses so far.
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Relaxed)
    }

    /// Sort key: live replicas first, then by requests in flight.
    pub(crate) fn preference(&self) -> (bool, u32) {
        (self.suspect.load(Relaxed), self.in_flight())
    }

    pub(crate) fn set_suspect(&self, suspect: bool) {
        self.suspect.store(suspect, Relaxed);
    }

    /// Called with the pool locked.
    pub(crate) fn take_permit(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// Called with the pool locked.
    pub(crate) fn return_permit(&self) {
        if self.in_flight.fetch_sub(1, Relaxed) == 1 && self.draining.is_cancelled() {
            self.drained.notify_one();
        }
    }

    /// Returns when the replica is draining and has no request in flight.
    pub(crate) async fn drained(&self) {
        self.draining.cancelled().await;
        while self.in_flight() > 0 {
            self.drained.notified().await;
        }
        self.connections.close_idle();
    }

    /// Sends a client's request.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Failure> {
        let answer = self.connections.send(request).await;
        if answer.is_ok() {
            self.answers.fetch_add(1, Relaxed);
        }
        answer
    }

    /// Sends an HTTP probe as a kubelet does. Before the process accepts, the connection waits in the listen backlog.
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

/// Whether the error means that the process no longer listens. Other errors, such as a lack of file descriptors, are
/// local.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | ConnectionAborted)
}
