//! The replicas of one function: grants permits to requests, queues them, and starts and stops replicas.
//! Independent of what a request says and of how a replica is started and stopped.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use framework::supervise::panic_message;
use futures_util::FutureExt;
use tokio::sync::oneshot;

use crate::{
    autoscaler::{Autoscaler, Settings},
    context::Context,
    lifecycle::{Ended, Running, Served},
    load::Load,
    pool::{Grant, Pool, Refusal},
    replica::Replica,
    spec::FunctionSpec,
    status::{Change, FunctionStatus},
};

/// A replica that ran at least this long before it crashed does not count towards a crash loop.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The replica once it is ready, and since when.
type Ready = OnceLock<(Arc<Replica>, Instant)>;

/// What a request gets at once.
pub(crate) enum Acquired {
    /// A permit of this replica, which the request must return with [`ReplicaSet::release`].
    Permit(Arc<Replica>),
    /// A ticket in the queue, and the channel on which the permit arrives.
    Queued(u64, oneshot::Receiver<Grant>),
}

/// The replicas of one function, and the requests that wait for them.
///
/// Lock order: the lock of `pool` is a leaf. While it is held, no other lock of this crate is taken and nothing is
/// awaited; channels, cancellation tokens and `spawn` have internal locks that call nothing back. What travels through
/// the channel of a waiting request is an `Arc<Replica>`, which takes no lock when it is dropped.
///
/// Why permits cannot deadlock: a request waits for a permit without holding the lock or another permit, so there is no
/// cycle. Every permit is owned by a [`Lease`](crate::lease), whose `Drop` returns it and dispatches the next waiting
/// request, or lies in the channel of a queue entry, whose `Drop` does the same. Requests in flight end by their
/// timeout, so permits come back. Waiting requests are dispatched whenever a permit is returned or a replica becomes
/// ready. If no replica is left, `activate` starts one, or the requests are refused (crash loop, shutdown). So no
/// request waits without a replica that is running or starting.
///
/// Dropping a guard of `lease` takes the lock, so no guard may be dropped while the lock is held. Nothing in this file
/// has one.
pub(crate) struct ReplicaSet {
    pub(crate) spec: FunctionSpec,
    settings: Settings,
    context: Context,
    epoch: Instant,
    pool: Mutex<Pool>,
}

impl ReplicaSet {
    pub(crate) fn new(spec: FunctionSpec, settings: Settings, context: Context) -> Arc<Self> {
        let now = Instant::now();
        let initial = settings.bounded(settings.initial_scale);
        let scaler = Autoscaler::new(settings.clone());
        let pool = Mutex::new(Pool::new(spec.container_concurrency, scaler, Load::new(now)));
        let set = Arc::new(Self { spec, settings, context, epoch: now, pool });
        set.scale(&mut set.pool(), initial);
        set
    }

    /// Locks the pool. Poisoning is ignored: no update spans several fields in a way that a panic could leave
    /// inconsistent.
    pub(crate) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a permit, or a place in the queue if all replicas are at their limit.
    pub(crate) fn acquire_or_enqueue(self: &Arc<Self>) -> Result<Acquired, Refusal> {
        let mut pool = self.pool();
        if pool.stopping {
            return Err(Refusal::Stopping);
        }
        if pool.waiting.is_empty()
            && let Some(replica) = pool.acquire()
        {
            return Ok(Acquired::Permit(replica));
        }
        if pool.waiting.len() >= self.queue_limit() {
            return Err(Refusal::Full);
        }
        let (ticket, granted) = pool.enqueue();
        self.activate(&mut pool);
        Ok(Acquired::Queued(ticket, granted))
    }

    /// Maximum number of waiting requests.
    fn queue_limit(&self) -> usize {
        let replicas = self.settings.max_scale.max(1) as usize;
        (10 * self.spec.container_concurrency as usize * replicas).max(1_000)
    }

    /// Returns a permit and dispatches waiting requests.
    pub(crate) fn release(&self, replica: &Replica) {
        let mut pool = self.pool();
        replica.return_permit();
        pool.dispatch_waiting();
    }

    /// Scales up from zero at once if requests wait and no replica is running or starting, without waiting for the
    /// autoscaler.
    fn activate(self: &Arc<Self>, pool: &mut Pool) {
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
            self.context.announce(Change::Scaled { function: self.spec.name.clone(), to: desired });
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

    /// Starts a replica after `backoff` and supervises it until it exits, in its own task. Removes the replica from the
    /// pool however it ends, also by a panic. The caller has counted it in `Pool::starting`.
    async fn run_replica(self: Arc<Self>, backoff: Duration) {
        let ready = Ready::new();
        let running = AssertUnwindSafe(self.start_and_serve(backoff, &ready)).catch_unwind();
        let ended = running.await.unwrap_or_else(|panic| {
            let message = panic_message(&*panic);
            let name = format!("replica of {}", self.spec.name);
            self.context.supervised.register(&name).panicked(&name, &message);
            Ended::Crashed(format!("the task that watches it panicked: {message}"))
        });
        self.on_exit(ended, &ready);
    }

    async fn start_and_serve(self: &Arc<Self>, backoff: Duration, ready: &Ready) -> Ended {
        let (mut running, cold) = match Running::start(&self.spec, &self.context, backoff).await {
            Ok(started) => started,
            Err(ended) => return ended,
        };
        let replica = running.replica();
        let _ = ready.set((replica.clone(), Instant::now()));
        {
            let mut pool = self.pool();
            pool.starting -= 1;
            pool.record_cold_start(cold);
            if pool.stopping {
                replica.draining.cancel();
            } else {
                pool.replicas.push(replica.clone());
                pool.dispatch_waiting();
            }
        }
        match running.serve(&self.spec.liveness, &self.context.stop).await {
            Served::Exited(how) => Ended::Crashed(how),
            Served::Drained => running.stop().await,
            Served::Hung(why) => {
                // Before its requests are aborted, so that those that are sent again do not reach it.
                self.replace_hung(&replica);
                running.kill(why).await
            }
        }
    }

    /// Removes a hung replica from the pool, and starts another if requests wait and none is left.
    fn replace_hung(self: &Arc<Self>, replica: &Arc<Replica>) {
        let mut pool = self.pool();
        pool.remove(replica);
        self.activate(&mut pool);
    }

    fn on_exit(self: &Arc<Self>, ended: Ended, ready: &Ready) {
        let mut pool = self.pool();
        match ready.get() {
            Some((replica, since)) => {
                pool.remove(replica);
                if since.elapsed() >= STABLE_AFTER {
                    pool.crashes.recovered();
                }
            }
            None => pool.starting -= 1,
        }
        if pool.stopping {
            return;
        }
        if let Ended::Crashed(how) = ended {
            let function = self.spec.name.clone();
            let why = format!("{how}; see {}", self.context.launcher.log_of(&function));
            let report = pool.crashes.record(&why);
            if let Some(why) = report {
                self.context.announce(Change::Crashed { function, why });
            }
            if ready.get().is_none() && pool.crashes.is_loop() {
                pool.refuse_waiting(&Refusal::CrashLoop(why));
            }
        }
        self.activate(&mut pool);
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
