//! One function: acquires a replica for each request, queues requests and scales the replicas.
//! Independent of routes: the gateway and event sources reach it through the invoker.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use framework::supervise::TaskRegistry;
use http::{Request, Response};
use http_body_util::Full;
use tokio::{
    sync::broadcast,
    time::{Instant as Deadline, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    FunctionSpec,
    autoscaler::{Autoscaler, Settings},
    connection::Failure,
    lease::{Demand, Lease, Waiter},
    load::Load,
    pool::{Pool, Refusal},
    process::Launcher,
    replica::{Replica, is_gone},
    status::{Change, FunctionStatus},
};

/// Shared by all functions.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) changes: broadcast::Sender<Change>,
    pub(crate) tasks: TaskTracker,
    pub(crate) supervised: TaskRegistry,
    pub(crate) stop: CancellationToken,
}

/// One function. Lock order and the argument against deadlock are at [`Pool`].
pub(crate) struct Function {
    pub(crate) spec: FunctionSpec,
    settings: Settings,
    pub(crate) context: Context,
    epoch: Instant,
    pool: Mutex<Pool>,
}

/// Why a request got no response.
pub(crate) enum Outcome {
    Refused(Refusal),
    Broken(String),
    NotSent(io::Error),
    TimedOut,
}

impl Function {
    pub(crate) fn new(spec: FunctionSpec, settings: Settings, context: Context) -> Arc<Self> {
        let now = Instant::now();
        let initial = settings.bounded(settings.initial_scale);
        let pool = Mutex::new(Pool::new(Autoscaler::new(settings.clone()), Load::new(now)));
        let function = Arc::new(Self { spec, settings, context, epoch: now, pool });
        function.scale(&mut function.pool(), initial);
        function
    }

    /// Locks the pool. Poisoning is ignored: no update spans several fields in a way that a panic could leave
    /// inconsistent.
    pub(crate) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request and returns the function's response, within its timeout. A request that may have been processed
    /// is retried only if its method is safe (RFC 9110, 9.2.2).
    ///
    /// Cancel-safe. Dropping the future cancels a safe request. An unsafe request that was sent continues in its own
    /// task and keeps its permit until it ends.
    pub(crate) async fn send(
        self: &Arc<Self>,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, Outcome> {
        let deadline = Deadline::now() + self.spec.timeout;
        timeout_at(deadline, self.send_until(deadline, request)).await.unwrap_or(Err(Outcome::TimedOut))
    }

    async fn send_until(
        self: &Arc<Self>,
        deadline: Deadline,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, Outcome> {
        let demand = Arc::new(Demand::new(self));
        let is_safe = request.method().is_safe();
        let mut retry = is_safe.then(|| request.clone());
        loop {
            let lease = self.acquire().await.map_err(Outcome::Refused)?;
            let answer = if is_safe {
                lease.send(request).await
            } else {
                let counted = demand.clone();
                let sending = async move {
                    let answer = timeout_at(deadline, lease.send(request)).await;
                    drop(counted);
                    answer.unwrap_or(Err(Failure::TimedOut))
                };
                let sent = self.context.tasks.spawn(sending).await;
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

    /// Acquires a permit, waiting for one if all replicas are at their limit.
    async fn acquire(self: &Arc<Self>) -> Result<Lease, Refusal> {
        let waiter = {
            let mut pool = self.pool();
            if pool.stopping {
                return Err(Refusal::Stopping);
            }
            if pool.waiting.is_empty()
                && let Some(replica) = pool.acquire(self.spec.container_concurrency)
            {
                return Ok(Lease::new(self.clone(), replica));
            }
            if pool.waiting.len() >= self.queue_limit() {
                return Err(Refusal::Full);
            }
            let ticket = pool.enqueue();
            self.activate(&mut pool);
            Waiter::new(self.clone(), ticket)
        };
        waiter.granted().await
    }

    /// Maximum number of waiting requests.
    fn queue_limit(&self) -> usize {
        let replicas = self.settings.max_scale.max(1) as usize;
        (10 * self.spec.container_concurrency as usize * replicas).max(1_000)
    }

    /// Returns a permit and dispatches waiting requests.
    pub(crate) fn release(self: &Arc<Self>, replica: &Replica) {
        let mut pool = self.pool();
        replica.return_permit();
        self.dispatch_waiting(&mut pool);
    }

    /// Grants free permits to waiting requests in FIFO order. Called with the pool locked.
    pub(crate) fn dispatch_waiting(self: &Arc<Self>, pool: &mut Pool) {
        while !pool.waiting.is_empty() {
            let Some(replica) = pool.acquire(self.spec.container_concurrency) else { return };
            let mut lease = Some(Lease::new(self.clone(), replica));
            while let Some(granted) = lease.take() {
                lease = match pool.waiting.pop_first() {
                    // The send fails if the request was cancelled but is still queued: try the next one.
                    Some((_, next)) => next.send(Ok(granted)).err().and_then(Result::ok),
                    None => {
                        granted.release_locked();
                        None
                    }
                };
            }
        }
    }

    /// Scales up from zero at once if requests wait and no replica is running or starting, without waiting for the
    /// autoscaler.
    pub(crate) fn activate(self: &Arc<Self>, pool: &mut Pool) {
        if pool.total() == 0 && !pool.waiting.is_empty() && !pool.stopping {
            let minimum = pool.desired.max(self.settings.activation_scale);
            self.scale(pool, self.settings.bounded(minimum.max(1)));
        }
    }

    fn scale(self: &Arc<Self>, pool: &mut Pool, desired: u32) {
        if pool.stopping {
            return;
        }
        if pool.desired != desired {
            pool.desired = desired;
            self.announce(Change::Scaled { function: self.spec.name.clone(), to: desired });
        }
        while pool.total() < desired {
            pool.starting += 1;
            self.context.tasks.spawn(self.clone().run_replica(pool.crashes.backoff()));
        }
        while pool.total() > desired {
            let spare = pool.replicas.iter().min_by_key(|replica| replica.in_flight()).cloned();
            let Some(spare) = spare else { return };
            pool.remove(&spare);
        }
    }

    pub(crate) fn announce(&self, change: Change) {
        // An error only means that nobody subscribed.
        let _ = self.context.changes.send(change);
    }

    /// Samples concurrency (called every second) and, if `decide`, applies the autoscaler's decision.
    pub(crate) fn tick(self: &Arc<Self>, now: Instant, decide: bool) {
        let mut pool = self.pool();
        let at = now.saturating_duration_since(self.epoch);
        let concurrency = pool.load.sample();
        pool.scaler.record(at, concurrency);
        if decide {
            let ready = u32::try_from(pool.replicas.len()).unwrap_or(u32::MAX);
            let mut desired = pool.scaler.decide(at, ready);
            // Keep a replica that is starting for a waiting request: the samples may not show it yet.
            if !pool.waiting.is_empty() || pool.starting > 0 {
                desired = desired.max(self.settings.bounded(1));
            }
            // Likewise while requests are in flight that the averages do not show yet.
            if desired == 0 && pool.load.level() > 0.0 {
                desired = 1;
            }
            self.scale(&mut pool, desired);
        }
    }

    /// Refuses new and waiting requests and drains all replicas.
    pub(crate) fn stop(&self) {
        let mut pool = self.pool();
        pool.stopping = true;
        pool.refuse_waiting(&Refusal::Stopping);
        for replica in std::mem::take(&mut pool.replicas) {
            replica.draining.cancel();
        }
    }

    pub(crate) fn status(&self) -> FunctionStatus {
        let pool = self.pool();
        FunctionStatus {
            name: self.spec.name.clone(),
            replicas: pool.replicas.iter().map(|replica| replica.status()).collect(),
            starting: pool.starting,
            desired: pool.desired,
            requests: pool.requests,
            queued: pool.waiting.len(),
            cold_starts: pool.cold_starts.iter().copied().collect(),
            crashes: pool.crashes.total,
            crash_loop: pool.crashes.is_loop(),
            last_error: pool.crashes.last_error.clone(),
        }
    }
}
