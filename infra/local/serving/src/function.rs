//! One function: its replicas, the requests that wait for them, and their number.
//! Knows no route; the gateway and the eventing side reach it through the invoker.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use shared::supervise::TaskRegistry;
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

/// What all functions share.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) changes: broadcast::Sender<Change>,
    pub(crate) tasks: TaskTracker,
    pub(crate) supervised: TaskRegistry,
    pub(crate) stop: CancellationToken,
}

pub(crate) struct Function {
    pub(crate) spec: FunctionSpec,
    settings: Settings,
    pub(crate) context: Context,
    epoch: Instant,
    pool: Mutex<Pool>,
}

/// Why a request got no answer.
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

    /// A panic leaves no value half-written that another one would depend on, so a poisoned lock is taken.
    pub(crate) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The function's answer within its timeout. What may have been worked on is not sent again, unless it only reads
    /// (RFC 9110, 9.2.2).
    ///
    /// May be dropped at any time. A request that only reads is then given up; another one that was sent goes on to
    /// its end in a task of its own, with its permit.
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
        let only_reads = request.method().is_safe();
        let mut again = only_reads.then(|| request.clone());
        loop {
            let lease = self.acquire().await.map_err(Outcome::Refused)?;
            let answer = if only_reads {
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
                Err(Failure::Broken(why)) => request = again.take().ok_or(Outcome::Broken(why))?,
                Err(Failure::NotSent(why, back)) if is_gone(&why) => request = *back,
                Err(Failure::NotSent(why, _)) => return Err(Outcome::NotSent(why)),
            }
        }
    }

    /// A permit of the first replica that has room.
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
            let place = pool.wait();
            self.activate(&mut pool);
            Waiter::new(self.clone(), place)
        };
        waiter.granted().await
    }

    /// Most requests that wait at once.
    fn queue_limit(&self) -> usize {
        let replicas = self.settings.max_scale.max(1) as usize;
        (10 * self.spec.container_concurrency as usize * replicas).max(1_000)
    }

    /// Takes a permit back.
    pub(crate) fn release(self: &Arc<Self>, replica: &Replica) {
        let mut pool = self.pool();
        replica.return_permit();
        self.dispatch_waiting(&mut pool);
    }

    /// Gives free permits to those who wait, first come first served.
    pub(crate) fn dispatch_waiting(self: &Arc<Self>, pool: &mut Pool) {
        while !pool.waiting.is_empty() {
            let Some(replica) = pool.acquire(self.spec.container_concurrency) else { return };
            let mut lease = Some(Lease::new(self.clone(), replica));
            while let Some(granted) = lease.take() {
                lease = match pool.waiting.pop_first() {
                    // It comes back from one that is just about to take itself out.
                    Some((_, next)) => next.send(Ok(granted)).err().and_then(Result::ok),
                    None => {
                        granted.release_locked();
                        None
                    }
                };
            }
        }
    }

    /// Where requests wait and nothing runs, something is started at once, whatever the autoscaler's clock says.
    pub(crate) fn activate(self: &Arc<Self>, pool: &mut Pool) {
        if pool.total() == 0 && !pool.waiting.is_empty() && !pool.stopping {
            let least = pool.desired.max(self.settings.activation_scale);
            self.scale(pool, self.settings.bounded(least.max(1)));
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
        // Nobody needs to listen.
        let _ = self.context.changes.send(change);
    }

    /// Called every second: takes a sample, and lets the autoscaler decide where `decide`.
    pub(crate) fn tick(self: &Arc<Self>, now: Instant, decide: bool) {
        let mut pool = self.pool();
        let at = now.saturating_duration_since(self.epoch);
        let concurrency = pool.load.sample();
        pool.scaler.record(at, concurrency);
        if decide {
            let ready = u32::try_from(pool.replicas.len()).unwrap_or(u32::MAX);
            let mut desired = pool.scaler.decide(at, ready);
            // What is being started for somebody who waits is not given up between two samples.
            if !pool.waiting.is_empty() || pool.starting > 0 {
                desired = desired.max(self.settings.bounded(1));
            }
            // One that is being started for the first request has not shown in the averages yet.
            if desired == 0 && pool.load.level() > 0.0 {
                desired = 1;
            }
            self.scale(&mut pool, desired);
        }
    }

    /// Takes no more requests and lets every replica go once it has answered its own.
    pub(crate) fn stop(&self) {
        let mut pool = self.pool();
        pool.stopping = true;
        pool.refuse(&Refusal::Stopping);
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
