//! RAII guards of one request: its share of the measured concurrency, its queue entry, its permit of a replica.
//! Each is released on drop, so that a request can be cancelled at any await point. Dropping one locks the pool: see
//! `Pool` for the consequences.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::sync::oneshot;

use crate::{
    connection::Failure,
    function::Function,
    pool::{Grant, Refusal},
    replica::{Replica, is_gone},
};

/// A request that counts as concurrency, waiting or in flight.
pub(crate) struct Demand(Arc<Function>);

impl Demand {
    pub(crate) fn new(function: &Arc<Function>) -> Self {
        let mut pool = function.pool();
        pool.requests += 1;
        pool.load.change(1.0);
        drop(pool);
        Self(function.clone())
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        self.0.pool().load.change(-1.0);
    }
}

/// A permit for one request in one replica.
pub(crate) struct Lease {
    function: Arc<Function>,
    /// `None` only after `release_locked`.
    replica: Option<Arc<Replica>>,
}

impl Lease {
    /// Wraps a permit that was acquired already.
    pub(crate) fn new(function: Arc<Function>, replica: Arc<Replica>) -> Self {
        Self { function, replica: Some(replica) }
    }

    /// Returns the permit while the caller holds the pool lock, which `Drop` would try to take again.
    pub(crate) fn release_locked(mut self) {
        if let Some(replica) = self.replica.take() {
            replica.return_permit();
        }
    }

    /// Sends the request to the replica and returns the permit. A replica that refuses connections is removed from the
    /// pool.
    pub(crate) async fn send(self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Failure> {
        let Some(replica) = &self.replica else { return Err(Failure::Broken("no replica".into())) };
        let answer = replica.send(request).await;
        match &answer {
            Ok(_) => self.function.pool().crashes.recovered(),
            Err(Failure::NotSent(error, _)) if is_gone(error) => self.function.pool().remove(replica),
            Err(_) => {}
        }
        answer
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(replica) = self.replica.take() {
            self.function.release(&replica);
        }
    }
}

/// A queue entry.
pub(crate) struct Waiter {
    function: Arc<Function>,
    ticket: u64,
    granted: oneshot::Receiver<Grant>,
}

impl Waiter {
    pub(crate) fn new(function: Arc<Function>, (ticket, granted): (u64, oneshot::Receiver<Grant>)) -> Self {
        Self { function, ticket, granted }
    }

    /// Waits for a permit.
    pub(crate) async fn granted(mut self) -> Grant {
        (&mut self.granted).await.unwrap_or(Err(Refusal::Stopping))
    }
}

impl Drop for Waiter {
    /// Removes the entry. A lease that was granted concurrently is dropped with the channel, after the lock is
    /// released: fields are dropped after this body.
    fn drop(&mut self) {
        self.function.pool().waiting.remove(&self.ticket);
    }
}
