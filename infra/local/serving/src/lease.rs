//! RAII guards of one request: its share of the measured concurrency, its queue entry, its permit of a replica.
//! Each is released on drop, so that a request can be cancelled at any await point. Dropping one locks the pool: see
//! [`ReplicaSet`] for the consequences.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::sync::oneshot;

use crate::{
    connection::Failure,
    pool::{Grant, Refusal},
    replica::{Replica, is_gone},
    replica_set::{Acquired, ReplicaSet},
};

/// A request that counts as concurrency, waiting or in flight.
pub(crate) struct Demand(Arc<ReplicaSet>);

impl Demand {
    pub(crate) fn new(set: &Arc<ReplicaSet>) -> Self {
        let mut pool = set.pool();
        pool.requests += 1;
        pool.load.change(1.0);
        drop(pool);
        Self(set.clone())
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        self.0.pool().load.change(-1.0);
    }
}

/// A permit for one request in one replica.
pub(crate) struct Lease {
    set: Arc<ReplicaSet>,
    replica: Arc<Replica>,
}

impl Lease {
    /// Acquires a permit, waiting for one if all replicas are at their limit. Cancel-safe.
    pub(crate) async fn acquire(set: &Arc<ReplicaSet>) -> Result<Self, Refusal> {
        let replica = match set.acquire_or_enqueue()? {
            Acquired::Permit(replica) => replica,
            Acquired::Queued(ticket, granted) => Waiter { set, ticket, granted }.granted().await?,
        };
        Ok(Self { set: set.clone(), replica })
    }

    /// Sends the request to the replica and returns the permit. A replica that refuses connections is removed from the
    /// pool.
    pub(crate) async fn send(self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Failure> {
        let answer = self.replica.send(request).await;
        match &answer {
            Ok(_) => self.set.pool().crashes.recovered(),
            Err(Failure::NotSent(error, _)) if is_gone(error) => self.set.pool().remove(&self.replica),
            Err(_) => {}
        }
        answer
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.set.release(&self.replica);
    }
}

/// A queue entry.
struct Waiter<'a> {
    set: &'a ReplicaSet,
    ticket: u64,
    granted: oneshot::Receiver<Grant>,
}

impl Waiter<'_> {
    /// Waits for a permit, which the caller must return.
    async fn granted(mut self) -> Grant {
        (&mut self.granted).await.unwrap_or(Err(Refusal::Stopping))
    }
}

impl Drop for Waiter<'_> {
    /// Removes the entry, and returns a permit that was granted but not received. Permits are granted under the lock,
    /// so none can arrive once the entry is removed.
    fn drop(&mut self) {
        self.set.pool().waiting.remove(&self.ticket);
        if let Ok(Ok(replica)) = self.granted.try_recv() {
            self.set.release(&replica);
        }
    }
}
