//! One function: sends each request to one of its replicas, and retries where that is safe.
//! Independent of routes: the gateway and event sources reach it through the invoker.

use std::{io, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::time::{Instant as Deadline, timeout_at};
use tokio_util::task::TaskTracker;

use crate::{
    connection::Failure,
    lease::{Demand, Lease},
    pool::Refusal,
    replica::is_gone,
    replica_set::ReplicaSet,
};

/// One function.
pub(crate) struct Function {
    pub(crate) replicas: Arc<ReplicaSet>,
    /// Where requests run that outlive their callers.
    tasks: TaskTracker,
}

/// Why a request got no response.
pub(crate) enum Outcome {
    Refused(Refusal),
    Broken(String),
    NotSent(io::Error),
    TimedOut,
}

impl Function {
    pub(crate) fn new(replicas: Arc<ReplicaSet>, tasks: TaskTracker) -> Self {
        Self { replicas, tasks }
    }

    /// Sends a request and returns the function's response, within its timeout. A request that may have been processed
    /// is retried only if its method is safe (RFC 9110, 9.2.2).
    ///
    /// Cancel-safe. Dropping the future cancels a safe request. An unsafe request that was sent continues in its own
    /// task and keeps its permit until it ends.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Outcome> {
        let deadline = Deadline::now() + self.replicas.spec.timeout;
        timeout_at(deadline, self.send_until(deadline, request)).await.unwrap_or(Err(Outcome::TimedOut))
    }

    async fn send_until(
        &self,
        deadline: Deadline,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, Outcome> {
        let demand = Arc::new(Demand::new(&self.replicas));
        let is_safe = request.method().is_safe();
        let mut retry = is_safe.then(|| request.clone());
        loop {
            let lease = Lease::acquire(&self.replicas).await.map_err(Outcome::Refused)?;
            let answer = if is_safe {
                lease.send(request).await
            } else {
                let counted = demand.clone();
                let sending = async move {
                    let answer = timeout_at(deadline, lease.send(request)).await;
                    drop(counted);
                    answer.unwrap_or(Err(Failure::TimedOut))
                };
                let sent = self.tasks.spawn(sending).await;
                sent.unwrap_or_else(|error| Err(Failure::Broken(error.to_string())))
            };
            match answer {
                Ok(response) => return Ok(response),
                Err(Failure::TimedOut) => return Err(Outcome::TimedOut),
                Err(Failure::Broken(why)) => request = retry.take().ok_or(Outcome::Broken(why))?,
                Err(Failure::NotSent(why, back)) if is_gone(&why) => request = *back,
                Err(Failure::NotSent(why, _)) => return Err(Outcome::NotSent(why)),
            }
        }
    }
}
