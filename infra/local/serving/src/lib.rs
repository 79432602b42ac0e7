//! Knative Serving for a laptop: runs functions as processes that start on demand, scale with load and scale to zero.
//! Independent of events and of the particular functions: those come as [`FunctionSpec`]s, prefixes as [`Route`]s.

pub mod autoscaler;
mod buckets;
mod connection;
mod context;
mod crashes;
mod function;
mod gateway;
mod guard;
mod invoker;
mod lease;
mod lifecycle;
mod liveness;
mod load;
mod pool;
mod process;
mod replica;
mod replica_set;
mod spec;
pub mod status;

use std::{
    collections::BTreeMap,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use framework::supervise::TaskRegistry;
use http::{Request, Response};
use tokio::{net::TcpListener, sync::broadcast, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    autoscaler::{AnnotationError, Settings},
    context::Context,
    function::Function,
    gateway::Router,
    replica_set::ReplicaSet,
    status::{Change, FunctionStatus},
};
pub use crate::{
    gateway::Route,
    guard::Guard,
    invoker::Invoker,
    process::{Launch, Launched, Launcher, Processes, append_to_log},
    spec::{FunctionSpec, LivenessProbe},
};

/// How often concurrency is sampled; the autoscaler decides at every second sample.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// A manifest with an invalid autoscaling annotation.
#[derive(Debug, thiserror::Error)]
#[error("function {function}: {source}")]
pub struct SpecError {
    function: String,
    source: AnnotationError,
}

/// Runs a set of functions.
///
/// Locks: each function has one pool lock, and each replica one for its idle connections. Neither is held across an
/// `await`, and no two are held at once, so they need no order.
pub struct Serving {
    functions: Arc<BTreeMap<String, Function>>,
    context: Context,
}

impl Serving {
    /// Starts to manage the functions. Only those with a `min-scale` or `initial-scale` start a replica now. Must be
    /// called within a Tokio runtime.
    ///
    /// # Errors
    /// An autoscaling annotation is wrong.
    pub fn start(specs: Vec<FunctionSpec>, launcher: impl Launcher) -> Result<Self, SpecError> {
        let serving = Self::without_autoscaler(specs, launcher)?;
        let (functions, context) = (serving.functions.clone(), serving.context.clone());
        serving.context.tasks.spawn(async move {
            tokio::select! {
                () = context.supervised.supervise("autoscaler", || run_autoscaler(functions.clone())) => {}
                () = context.stop.cancelled() => {}
            }
        });
        Ok(serving)
    }

    /// Without the periodic autoscaler, so that tests call `tick` themselves.
    fn without_autoscaler(specs: Vec<FunctionSpec>, launcher: impl Launcher) -> Result<Self, SpecError> {
        let context = Context {
            launcher: Arc::new(launcher),
            changes: broadcast::Sender::new(256),
            tasks: TaskTracker::new(),
            supervised: TaskRegistry::default(),
            stop: CancellationToken::new(),
        };
        // Validate every manifest before any replica starts.
        let read = |spec: FunctionSpec| match Settings::read(&spec.annotations, spec.container_concurrency) {
            Ok(settings) => Ok((spec, settings)),
            Err(source) => Err(SpecError { function: spec.name, source }),
        };
        let read: Vec<_> = specs.into_iter().map(read).collect::<Result<_, _>>()?;
        let new = |(spec, settings): (FunctionSpec, Settings)| {
            let (name, tasks) = (spec.name.clone(), context.tasks.clone());
            (name, Function::new(ReplicaSet::new(spec, settings, context.clone()), tasks))
        };
        Ok(Self { functions: Arc::new(read.into_iter().map(new).collect()), context })
    }

    /// A handle that sends requests to the functions.
    #[must_use]
    pub fn invoker(&self) -> Invoker {
        Invoker::new(self.functions.clone())
    }

    /// Serves the gateway until `stop`, then drains it. `status` answers `GET /` and `/status`. `routes` are prefixes
    /// of the path that lead to functions; `/function/NAME/` and `NAME.default.localhost` always do. `guard` says which
    /// requests get 403.
    pub async fn gateway<S, F>(
        &self,
        listener: TcpListener,
        routes: Vec<Route>,
        guard: Guard,
        status: S,
        stop: impl Future<Output = ()>,
    ) where
        S: Fn(Request<Bytes>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<Bytes>> + Send + 'static,
    {
        // A listener without an address serves nobody.
        let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        gateway::serve(listener, Router::new(self.invoker(), routes, guard, is_local), status, stop).await;
    }

    /// The current status of every function, sorted by name.
    #[must_use]
    pub fn status(&self) -> Vec<FunctionStatus> {
        self.functions.values().map(|f| f.replicas.status()).collect()
    }

    /// Subscribes to changes from now on.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.context.changes.subscribe()
    }

    /// Supervised tasks. Other components may register theirs here too.
    #[must_use]
    pub fn supervised(&self) -> TaskRegistry {
        self.context.supervised.clone()
    }

    /// Drains and stops every replica; returns when all have exited.
    pub async fn shutdown(&self) {
        self.context.stop.cancel();
        self.functions.values().for_each(|f| f.replicas.stop());
        self.context.tasks.close();
        self.context.tasks.wait().await;
    }
}

/// Samples concurrency at every interval and lets the autoscaler decide at every second one.
async fn run_autoscaler(functions: Arc<BTreeMap<String, Function>>) {
    let mut interval = tokio::time::interval(SAMPLE_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut decide = false;
    loop {
        interval.tick().await;
        functions.values().for_each(|f| f.replicas.tick(Instant::now(), decide));
        decide = !decide;
    }
}

#[cfg(test)]
mod tests;
