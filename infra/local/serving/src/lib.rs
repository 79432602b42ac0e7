//! What Knative Serving does, on a laptop: functions as processes that start on demand, scale and stop.
//! Knows nothing of events, and of functions only what their manifests say.

pub mod autoscaler;
mod buckets;
mod connection;
mod function;
mod gateway;
mod invoker;
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
use tokio::{net::TcpListener, sync::broadcast, time::MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    autoscaler::{AnnotationError, Settings},
    function::{Function, Surroundings},
    status::{Change, FunctionStatus},
};
pub use crate::{
    invoker::Invoker,
    replica::{Launch, Launched, Launcher, Processes},
};

/// How often concurrency is sampled; the autoscaler decides at every second sample.
const SAMPLE: Duration = Duration::from_secs(1);

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
    around: Surroundings,
}

impl Serving {
    /// Takes charge of the functions; nothing is started that has no `min-scale`. Call it inside a runtime.
    ///
    /// # Errors
    /// An autoscaling annotation is wrong.
    pub fn start(specs: Vec<FunctionSpec>, launcher: impl Launcher) -> Result<Self, SpecError> {
        let serving = Self::unclocked(specs, launcher)?;
        let (functions, stop) = (serving.functions.clone(), serving.around.stop.clone());
        serving.around.tasks.spawn(async move {
            tokio::select! {
                () = clock(&functions) => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(serving)
    }

    /// Without the autoscaler's clock.
    fn unclocked(specs: Vec<FunctionSpec>, launcher: impl Launcher) -> Result<Self, SpecError> {
        let around = Surroundings {
            launcher: Arc::new(launcher),
            changes: broadcast::Sender::new(256),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        // All manifests are read before anything starts.
        let read = |spec: FunctionSpec| match Settings::read(&spec.annotations, spec.container_concurrency) {
            Ok(settings) => Ok((spec, settings)),
            Err(source) => Err(SpecError { function: spec.name, source }),
        };
        let read: Vec<_> = specs.into_iter().map(read).collect::<Result<_, _>>()?;
        let new = |(spec, settings): (FunctionSpec, Settings)| {
            (spec.name.clone(), Function::new(spec, settings, around.clone()))
        };
        Ok(Self { functions: Arc::new(read.into_iter().map(new).collect()), around })
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
        self.around.changes.subscribe()
    }

    /// Ends every replica, each once it has answered its requests; afterwards none is left.
    pub async fn shutdown(&self) {
        self.around.stop.cancel();
        self.functions.values().for_each(|f| f.stop());
        self.around.tasks.close();
        self.around.tasks.wait().await;
    }
}

async fn clock(functions: &BTreeMap<String, Arc<Function>>) {
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
