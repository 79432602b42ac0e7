//! What Knative Serving does, on a laptop: functions as processes that start on demand, scale and stop.
//! Knows nothing of events, and of functions only what their manifests say.

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
use http::{Request, Response};
use shared::supervise::TaskRegistry;
use tokio::{net::TcpListener, sync::broadcast, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    autoscaler::{AnnotationError, Settings},
    function::{Context, Function},
    status::{Change, FunctionStatus},
};
pub use crate::{
    invoker::Invoker,
    liveness::LivenessProbe,
    process::{Launch, Launched, Launcher, Processes, append_to_log},
};

/// How often concurrency is sampled; the autoscaler decides at every second sample.
const SAMPLE: Duration = Duration::from_secs(1);

/// How long a process may take to its first answer, unless told otherwise.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// What a function's manifest says.
#[derive(Debug, Clone)]
pub struct FunctionSpec {
    /// Its name.
    pub name: String,
    /// Most requests at once in one replica; 0: any number.
    pub container_concurrency: u32,
    /// Most time for one request, waiting included.
    pub timeout: Duration,
    /// The template's annotations.
    pub annotations: BTreeMap<String, String>,
    /// Variables of its container.
    pub env: Vec<(String, String)>,
    /// Variables of its container whose values come from the cluster's configuration (`valueFrom`). The function may
    /// read these keys and no others; whoever starts it gives their values.
    pub keys: Vec<String>,
    /// Most time from a process' start to its first answer; then it is killed.
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

/// A manifest that cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("function {function}: {source}")]
pub struct SpecError {
    function: String,
    source: AnnotationError,
}

/// The functions, served.
pub struct Serving {
    functions: Arc<BTreeMap<String, Arc<Function>>>,
    context: Context,
}

impl Serving {
    /// Takes charge of the functions; nothing is started that has no `min-scale`. Call it inside a runtime.
    ///
    /// # Errors
    /// An autoscaling annotation is wrong.
    pub fn start(specs: Vec<FunctionSpec>, launcher: impl Launcher) -> Result<Self, SpecError> {
        let serving = Self::unclocked(specs, launcher)?;
        let (functions, context) = (serving.functions.clone(), serving.context.clone());
        serving.context.tasks.spawn(async move {
            tokio::select! {
                () = context.supervised.supervise("autoscaler", || clock(functions.clone())) => {}
                () = context.stop.cancelled() => {}
            }
        });
        Ok(serving)
    }

    /// Without the autoscaler's clock.
    fn unclocked(specs: Vec<FunctionSpec>, launcher: impl Launcher) -> Result<Self, SpecError> {
        let context = Context {
            launcher: Arc::new(launcher),
            changes: broadcast::Sender::new(256),
            tasks: TaskTracker::new(),
            supervised: TaskRegistry::default(),
            stop: CancellationToken::new(),
        };
        // All manifests are read before anything starts.
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

    /// Sends requests to the functions.
    #[must_use]
    pub fn invoker(&self) -> Invoker {
        Invoker::new(self.functions.clone())
    }

    /// Serves the one port until `stop`, then lets requests under way end; `status` answers `GET /` and `/status`.
    pub async fn gateway<S, F>(&self, listener: TcpListener, status: S, stop: impl Future<Output = ()>)
    where
        S: Fn(Request<Bytes>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<Bytes>> + Send + 'static,
    {
        gateway::serve(listener, self.invoker(), status, stop).await;
    }

    /// Every function as it is now, in the order of their names.
    #[must_use]
    pub fn status(&self) -> Vec<FunctionStatus> {
        self.functions.values().map(|f| f.status()).collect()
    }

    /// What happens from now on.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.context.changes.subscribe()
    }

    /// The supervised tasks behind the functions; others may register theirs.
    #[must_use]
    pub fn supervised(&self) -> TaskRegistry {
        self.context.supervised.clone()
    }

    /// Ends every replica, each once it has answered its requests; afterwards none is left.
    pub async fn shutdown(&self) {
        self.context.stop.cancel();
        self.functions.values().for_each(|f| f.stop());
        self.context.tasks.close();
        self.context.tasks.wait().await;
    }
}

async fn clock(functions: Arc<BTreeMap<String, Arc<Function>>>) {
    let mut interval = tokio::time::interval(SAMPLE);
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
