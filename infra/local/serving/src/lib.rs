//! Knative Serving for a laptop: runs functions as processes that start on demand, scale with load and scale to zero.
//! Independent of events and of the particular functions: those come as [`FunctionSpec`]s, prefixes as [`Route`]s.

pub mod autoscaler;
mod buckets;
mod connection;
mod crashes;
mod function;
mod gateway;
mod invoker;
mod lease;
mod lifecycle;
mod liveness;
mod load;
mod pool;
mod process;
mod replica;
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
    function::{Context, Function},
    gateway::Router,
    status::{Change, FunctionStatus},
};
pub use crate::{
    gateway::Route,
    invoker::Invoker,
    liveness::LivenessProbe,
    process::{Launch, Launched, Launcher, Processes, append_to_log},
};

/// How often concurrency is sampled; the autoscaler decides at every second sample.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Default time from a process' start to its first response.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// What a function's manifest says.
#[derive(Debug, Clone)]
pub struct FunctionSpec {
    /// Its name.
    pub name: String,
    /// Maximum number of concurrent requests per replica; 0 means no limit.
    pub container_concurrency: u32,
    /// Time limit of one request, including the time it waits for a replica.
    pub timeout: Duration,
    /// The template's annotations.
    pub annotations: BTreeMap<String, String>,
    /// Environment variables of its container.
    pub env: Vec<(String, String)>,
    /// Variables of its container whose values come from the cluster's configuration (`valueFrom`). The function may
    /// read these keys and no others; whoever starts it gives their values.
    pub keys: Vec<String>,
    /// Time limit from a process' start to its first response. After that the process is killed.
    pub start_timeout: Duration,
    /// How its replicas are probed.
    pub liveness: LivenessProbe,
}

impl FunctionSpec {
    /// A function with Knative's defaults: any number of requests at once, 300 s for each.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            container_concurrency: 0,
            timeout: Duration::from_secs(300),
            annotations: BTreeMap::new(),
            env: Vec::new(),
            keys: Vec::new(),
            start_timeout: START_TIMEOUT,
            liveness: LivenessProbe::default(),
        }
    }
}

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
    functions: Arc<BTreeMap<String, Arc<Function>>>,
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
            (spec.name.clone(), Function::new(spec, settings, context.clone()))
        };
        Ok(Self { functions: Arc::new(read.into_iter().map(new).collect()), context })
    }

    /// A handle that sends requests to the functions.
    #[must_use]
    pub fn invoker(&self) -> Invoker {
        Invoker::new(self.functions.clone())
    }

    /// Serves the gateway until `stop`, then drains it. `status` answers `GET /` and `/status`. `routes` are prefixes
    /// of the path that lead to functions; `/function/NAME/` and `NAME.default.localhost` always do.
    pub async fn gateway<S, F>(
        &self,
        listener: TcpListener,
        routes: Vec<Route>,
        status: S,
        stop: impl Future<Output = ()>,
    ) where
        S: Fn(Request<Bytes>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<Bytes>> + Send + 'static,
    {
        gateway::serve(listener, Router::new(self.invoker(), routes), status, stop).await;
    }

    /// The current status of every function, sorted by name.
    #[must_use]
    pub fn status(&self) -> Vec<FunctionStatus> {
        self.functions.values().map(|f| f.status()).collect()
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
        self.functions.values().for_each(|f| f.stop());
        self.context.tasks.close();
        self.context.tasks.wait().await;
    }
}

/// Samples concurrency at every interval and lets the autoscaler decide at every second one.
async fn run_autoscaler(functions: Arc<BTreeMap<String, Arc<Function>>>) {
    let mut interval = tokio::time::interval(SAMPLE_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut decide = false;
    loop {
        interval.tick().await;
        functions.values().for_each(|f| f.tick(Instant::now(), decide));
        decide = !decide;
    }
}

#[cfg(test)]
mod tests;
