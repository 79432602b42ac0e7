//! One function: its replicas, the requests that wait for them, and their number.
//! Knows no route; the gateway and the eventing side reach it through the invoker.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use http_body_util::Full;
use tokio::sync::{Notify, broadcast, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    FunctionSpec,
    autoscaler::{Autoscaler, Settings},
    connection::{Connections, Failure},
    replica::{Launched, Launcher},
    status::{Change, ColdStart, FunctionStatus, ReplicaStatus},
};

/// How many cold starts are remembered.
const COLD_STARTS: usize = 20;
/// After so many deaths in a row before a first answer, requests no longer wait.
const HOPELESS: u32 = 3;
/// How long a process may take to its first answer.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(5);

/// Why a request got no replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too many wait already.
    Full,
    /// The runtime ends.
    Stopping,
    /// Its process dies whenever it is started.
    Hopeless(String),
}

type Grant = Result<Arc<Replica>, Refusal>;

/// A replica that takes requests.
pub(crate) struct Replica {
    pid: u32,
    started: DateTime<Utc>,
    pub(crate) connections: Connections,
    /// Changed only under the pool's lock.
    in_flight: AtomicU32,
    /// Cancelled once it gets no more requests.
    leaves: CancellationToken,
    empty: Notify,
}

/// What is shared by all functions.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) changes: broadcast::Sender<Change>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

pub(crate) struct Function {
    pub(crate) spec: FunctionSpec,
    settings: Settings,
    around: Surroundings,
    epoch: Instant,
    pool: Mutex<Pool>,
}

struct Pool {
    scaler: Autoscaler,
    replicas: Vec<Arc<Replica>>,
    starting: u32,
    desired: u32,
    waiting: VecDeque<oneshot::Sender<Grant>>,
    load: Load,
    requests: u64,
    cold_starts: VecDeque<ColdStart>,
    deaths: u32,
    stopping: bool,
}

/// Concurrency over time: requests in flight and waiting.
struct Load {
    level: f64,
    area: f64,
    since: Instant,
    sampled: Instant,
}

impl Load {
    fn change(&mut self, by: f64) {
        let now = Instant::now();
        self.area += self.level * now.duration_since(self.since).as_secs_f64();
        self.since = now;
        self.level += by;
    }

    /// The average since the last time.
    fn sample(&mut self) -> f64 {
        self.change(0.0);
        let seconds = self.since.duration_since(self.sampled).as_secs_f64();
        let average = if seconds > 0.0 { self.area / seconds } else { self.level };
        (self.area, self.sampled) = (0.0, self.since);
        average
    }
}

impl Pool {
    fn total(&self) -> u32 {
        u32::try_from(self.replicas.len()).unwrap_or(u32::MAX).saturating_add(self.starting)
    }

    /// Takes a place in the replica that has most room.
    fn seat(&self, limit: u32) -> Option<Arc<Replica>> {
        let load = |r: &&Arc<Replica>| r.in_flight.load(Relaxed);
        let replica = self.replicas.iter().min_by_key(load)?;
        if limit != 0 && load(&replica) >= limit {
            return None;
        }
        replica.in_flight.fetch_add(1, Relaxed);
        Some(replica.clone())
    }

    fn leave(&self, replica: &Replica) {
        if replica.in_flight.fetch_sub(1, Relaxed) == 1 && replica.leaves.is_cancelled() {
            replica.empty.notify_one();
        }
    }

    /// Gives free places to those who wait, first come first served.
    fn admit(&mut self, limit: u32) {
        while !self.waiting.is_empty() {
            let Some(replica) = self.seat(limit) else { return };
            while let Some(next) = self.waiting.pop_front() {
                match next.send(Ok(replica.clone())) {
                    Ok(()) => break,
                    // It stopped waiting.
                    Err(_) if self.waiting.is_empty() => self.leave(&replica),
                    Err(_) => {}
                }
            }
        }
    }

    fn refuse(&mut self, why: &Refusal) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(Err(why.clone()));
        }
    }

    fn dismiss(&mut self, replica: &Arc<Replica>) {
        self.replicas.retain(|r| !Arc::ptr_eq(r, replica));
        replica.leaves.cancel();
    }
}

impl Function {
    pub(crate) fn new(spec: FunctionSpec, settings: Settings, around: Surroundings) -> Arc<Self> {
        let now = Instant::now();
        let initial = settings.bounded(settings.initial_scale);
        let pool = Pool {
            scaler: Autoscaler::new(settings.clone()),
            replicas: Vec::new(),
            starting: 0,
            desired: 0,
            waiting: VecDeque::new(),
            load: Load { level: 0.0, area: 0.0, since: now, sampled: now },
            requests: 0,
            cold_starts: VecDeque::new(),
            deaths: 0,
            stopping: false,
        };
        let function = Arc::new(Self { spec, settings, around, epoch: now, pool: Mutex::new(pool) });
        function.scale(&mut function.pool(), initial);
        function
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most requests that wait at once.
    fn queue_limit(&self) -> usize {
        let replicas = self.settings.max_scale.max(1) as usize;
        (10 * self.spec.container_concurrency as usize * replicas).max(1_000)
    }

    /// Counts a request in, until what is returned is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Visit {
        let mut pool = self.pool();
        pool.requests += 1;
        pool.load.change(1.0);
        drop(pool);
        Visit { function: self.clone(), replica: None, waiting: None }
    }

    fn ask(self: &Arc<Self>) -> Result<Asked, Refusal> {
        let limit = self.spec.container_concurrency;
        let mut pool = self.pool();
        if pool.stopping {
            return Err(Refusal::Stopping);
        }
        if pool.waiting.is_empty()
            && let Some(replica) = pool.seat(limit)
        {
            return Ok(Asked::Seated(replica));
        }
        if pool.waiting.len() >= self.queue_limit() {
            pool.waiting.retain(|w| !w.is_closed());
            if pool.waiting.len() >= self.queue_limit() {
                return Err(Refusal::Full);
            }
        }
        let (grant, granted) = oneshot::channel();
        pool.waiting.push_back(grant);
        self.activate(&mut pool);
        Ok(Asked::Waiting(granted))
    }

    /// Where requests wait and nothing runs, something is started at once, whatever the autoscaler's clock says.
    fn activate(self: &Arc<Self>, pool: &mut Pool) {
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
            let _ =
                self.around.changes.send(Change::Scaled { function: self.spec.name.clone(), to: desired });
        }
        while pool.total() < desired {
            pool.starting += 1;
            self.around.tasks.spawn(self.clone().live(pool.deaths));
        }
        while pool.total() > desired {
            let load = |r: &&Arc<Replica>| r.in_flight.load(Relaxed);
            let Some(spare) = pool.replicas.iter().min_by_key(load).cloned() else { return };
            pool.dismiss(&spare);
        }
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
            if desired == 0 && pool.load.level > 0.0 {
                desired = 1;
            }
            self.scale(&mut pool, desired);
        }
    }

    /// A replica that cannot be reached gets no more requests.
    pub(crate) fn lost(&self, replica: &Arc<Replica>) {
        self.pool().dismiss(replica);
    }

    /// Takes no more requests and lets every replica go once it has answered its own.
    pub(crate) fn stop(&self) {
        let mut pool = self.pool();
        pool.stopping = true;
        pool.refuse(&Refusal::Stopping);
        for replica in std::mem::take(&mut pool.replicas) {
            replica.leaves.cancel();
        }
    }

    pub(crate) fn status(&self) -> FunctionStatus {
        let pool = self.pool();
        let replica = |r: &Arc<Replica>| ReplicaStatus {
            pid: r.pid,
            in_flight: r.in_flight.load(Relaxed),
            started: r.started,
        };
        FunctionStatus {
            name: self.spec.name.clone(),
            replicas: pool.replicas.iter().map(replica).collect(),
            starting: pool.starting,
            desired: pool.desired,
            requests: pool.requests,
            queued: pool.waiting.len(),
            cold_starts: pool.cold_starts.iter().copied().collect(),
        }
    }

    /// One replica from its start to its end.
    async fn live(self: Arc<Self>, deaths: u32) {
        tokio::select! {
            () = tokio::time::sleep(backoff(deaths)) => {}
            () = self.around.stop.cancelled() => {}
        }
        match self.start().await {
            Ok((replica, ended, stop)) => self.serve(replica, ended, stop).await,
            Err(why) => self.died(&why),
        }
    }

    async fn start(&self) -> Result<(Arc<Replica>, BoxFuture<'static, String>, CancellationToken), String> {
        if self.around.stop.is_cancelled() {
            return Err("the runtime ends".into());
        }
        let (begun, started) = (Instant::now(), Utc::now());
        let Launched { pid, address, stop, mut ended } =
            self.around.launcher.launch(&self.spec).map_err(|e| format!("could not be started: {e}"))?;
        let connections = Connections::new(address);
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(START_TIMEOUT, greet(&connections)) => matches!(greeted, Ok(true)),
            how = &mut ended => return Err(how),
            () = self.around.stop.cancelled() => false,
        };
        if !greeted {
            stop.cancel();
            return Err(ended.await);
        }
        let replica = Arc::new(Replica {
            pid,
            started,
            connections,
            in_flight: AtomicU32::new(0),
            leaves: CancellationToken::new(),
            empty: Notify::new(),
        });
        self.joined(&replica, ColdStart { time: started, ms: begun.elapsed().as_secs_f64() * 1e3 });
        Ok((replica, ended, stop))
    }

    fn joined(&self, replica: &Arc<Replica>, cold: ColdStart) {
        let mut pool = self.pool();
        pool.starting -= 1;
        pool.deaths = 0;
        if pool.cold_starts.len() == COLD_STARTS {
            pool.cold_starts.pop_front();
        }
        pool.cold_starts.push_back(cold);
        if pool.stopping {
            replica.leaves.cancel();
            return;
        }
        pool.replicas.push(replica.clone());
        pool.admit(self.spec.container_concurrency);
    }

    async fn serve(
        self: Arc<Self>,
        replica: Arc<Replica>,
        mut ended: BoxFuture<'static, String>,
        stop: CancellationToken,
    ) {
        let answered = async {
            replica.leaves.cancelled().await;
            while replica.in_flight.load(Relaxed) > 0 {
                replica.empty.notified().await;
            }
        };
        tokio::select! {
            how = &mut ended => {
                self.crashed(&how);
                let mut pool = self.pool();
                pool.dismiss(&replica);
                self.activate(&mut pool);
            }
            () = answered => {
                replica.connections.close_idle();
                stop.cancel();
                ended.await;
            }
        }
    }

    /// A process that ended before it answered anything; those who wait get another one, after a while.
    fn died(self: &Arc<Self>, how: &str) {
        let mut pool = self.pool();
        pool.starting -= 1;
        if pool.stopping {
            return;
        }
        pool.deaths += 1;
        let why = self.crashed(how);
        if pool.deaths >= HOPELESS {
            pool.refuse(&Refusal::Hopeless(why));
        }
        self.activate(&mut pool);
    }

    fn crashed(&self, how: &str) -> String {
        let function = self.spec.name.clone();
        let why = format!("{how}; see {}", self.around.launcher.log_of(&function));
        let _ = self.around.changes.send(Change::Crashed { function, why: why.clone() });
        why
    }
}

fn backoff(deaths: u32) -> Duration {
    match deaths {
        0 => Duration::ZERO,
        n => BACKOFF_FIRST.saturating_mul(1 << (n - 1).min(10)).min(BACKOFF_MOST),
    }
}

/// Asks for the first answer, on a connection that waits in the kernel until the process takes it.
/// A process that dies at its start thus takes no request with it.
async fn greet(connections: &Connections) -> bool {
    let mut request = http::Request::new(Full::<Bytes>::default());
    *request.uri_mut() = http::Uri::from_static("/healthz");
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("localhost"));
    connections.send(request).await.is_ok()
}

enum Asked {
    Seated(Arc<Replica>),
    Waiting(oneshot::Receiver<Grant>),
}

/// A request that is counted; however it ends, its place becomes free.
pub(crate) struct Visit {
    function: Arc<Function>,
    replica: Option<Arc<Replica>>,
    waiting: Option<oneshot::Receiver<Grant>>,
}

impl Visit {
    /// Sends the request to the first replica that has room: once, or twice where that changes nothing (RFC 9110, 9.2.2).
    pub(crate) async fn send(
        &mut self,
        mut request: http::Request<Full<Bytes>>,
    ) -> Result<http::Response<Bytes>, Outcome> {
        let mut again = request.method().is_safe().then(|| request.clone());
        loop {
            let replica = self.seat().await.map_err(Outcome::Refused)?;
            match replica.connections.send(request).await {
                Ok(response) => return Ok(response),
                Err(Failure::Broken(why)) => request = again.take().ok_or(Outcome::Broken(why))?,
                Err(Failure::NotSent(why, back)) if gone(&why) => {
                    self.function.lost(&replica);
                    request = *back;
                }
                Err(Failure::NotSent(why, _)) => return Err(Outcome::NotSent(why)),
            }
        }
    }

    async fn seat(&mut self) -> Result<Arc<Replica>, Refusal> {
        self.stand();
        let replica = match self.function.ask()? {
            Asked::Seated(replica) => replica,
            Asked::Waiting(granted) => {
                let granted = self.waiting.insert(granted);
                let grant = granted.await.unwrap_or(Err(Refusal::Stopping));
                self.waiting = None;
                grant?
            }
        };
        self.replica = Some(replica.clone());
        Ok(replica)
    }

    /// Gives the place back, also one that was granted while nobody was waiting for it any more.
    fn stand(&mut self) {
        let granted = self.waiting.take().and_then(|mut waiting| {
            waiting.close();
            waiting.try_recv().ok().and_then(Result::ok)
        });
        if let Some(replica) = self.replica.take().or(granted) {
            let mut pool = self.function.pool();
            pool.leave(&replica);
            pool.admit(self.function.spec.container_concurrency);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.stand();
        self.function.pool().load.change(-1.0);
    }
}

/// Why a request got no answer.
pub(crate) enum Outcome {
    Refused(Refusal),
    Broken(String),
    NotSent(io::Error),
}

/// Whether nobody listens there any more; anything else (no file descriptors, say) is this side's.
fn gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | ConnectionAborted)
}
