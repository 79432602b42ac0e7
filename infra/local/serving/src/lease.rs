//! What one request holds: its share of the measured concurrency, its place in the queue, its permit of a replica.
//! Each is given back when it is dropped, so that a client may hang up at any await point.

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
    /// Taken out only where the permit is given back without the lease's own locking.
    replica: Option<Arc<Replica>>,
}

impl Lease {
    /// For a permit that was taken already.
    pub(crate) fn new(function: Arc<Function>, replica: Arc<Replica>) -> Self {
        Self { function, replica: Some(replica) }
    }

    /// Gives the permit back while the caller holds the pool's lock.
    pub(crate) fn release_locked(mut self) {
        if let Some(replica) = self.replica.take() {
            replica.return_permit();
        }
    }

    /// Sends the request to the replica and gives the permit back. A replica that is gone gets no more requests.
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

/// A place in the queue.
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
    /// A lease that was granted meanwhile is dropped with the channel, after the lock is free again.
    fn drop(&mut self) {
        self.function.pool().waiting.remove(&self.ticket);
    }
}
