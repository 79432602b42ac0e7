//! Lifecycle of one replica: start, startup probe, serve, drain, exit. Independent of the pool.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::Utc;
use http::Uri;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    liveness,
    process::Launched,
    replica::Replica,
    spec::{FunctionSpec, LivenessProbe},
    status::ColdStart,
};

/// How long to wait for the exit of a process whose startup probe failed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time limit for requests in flight after the runtime was told to stop.
const SHUTDOWN_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How a replica ended.
pub(crate) enum Ended {
    Stopped,
    Crashed(String),
}

/// Why a replica serves no longer.
pub(crate) enum Served {
    /// The process exited by itself; holds how.
    Exited(String),
    /// It has no request in flight and gets no further ones, or the time for that is up.
    Drained,
    /// It failed its liveness probes; holds the reason.
    Hung(String),
}

/// A replica that passed its startup probe, and its process.
pub(crate) struct Running {
    replica: Arc<Replica>,
    process: Launched,
}

impl Running {
    /// Starts a process after `backoff` and waits until it responds. Requests are sent only after this, so a crash at
    /// startup loses none.
    ///
    /// # Errors
    /// How it ended, if it never responded.
    pub(crate) async fn start(
        spec: &FunctionSpec,
        context: &Context,
        backoff: Duration,
    ) -> Result<(Self, ColdStart), Ended> {
        let stop = &context.stop;
        tokio::select! {
            () = sleep(backoff) => {}
            () = stop.cancelled() => {}
        }
        if stop.is_cancelled() {
            return Err(Ended::Stopped);
        }
        let (start, started) = (Instant::now(), Utc::now());
        let process = context.launcher.launch(spec);
        let process = process.map_err(|error| Ended::Crashed(format!("could not be started: {error}")))?;
        let replica = Arc::new(Replica::new(&process, started));
        let mut running = Self { replica, process };
        running.startup_probe(spec.start_timeout, stop).await?;
        Ok((running, ColdStart { time: started, ms: start.elapsed().as_secs_f64() * 1e3 }))
    }

    async fn startup_probe(&mut self, limit: Duration, stop: &CancellationToken) -> Result<(), Ended> {
        let (path, process) = (Uri::from_static("/healthz"), &mut self.process);
        let answer = tokio::select! {
            answer = timeout(limit, self.replica.probe(&path)) => answer,
            how = &mut process.ended => return Err(Ended::Crashed(how)),
            () = stop.cancelled() => {
                process.stop.cancel();
                (&mut process.ended).await;
                return Err(Ended::Stopped);
            }
        };
        let how = match answer {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(_)) => timeout(EXIT_TIMEOUT, &mut process.ended).await.ok(),
            Err(_) => None,
        };
        if how.is_none() {
            process.kill.cancel();
            (&mut process.ended).await;
        }
        Err(Ended::Crashed(how.unwrap_or_else(|| {
            format!("it was killed, since it did not answer within {limit:?} of its start")
        })))
    }

    /// The replica that requests are sent to.
    pub(crate) fn replica(&self) -> Arc<Replica> {
        self.replica.clone()
    }

    /// Watches the replica while it serves. Returns why it must end; the caller ends it.
    pub(crate) async fn serve(&mut self, probe: &LivenessProbe, stop: &CancellationToken) -> Served {
        let shutdown = async {
            stop.cancelled().await;
            sleep(SHUTDOWN_DRAIN_TIMEOUT).await;
        };
        tokio::select! {
            how = &mut self.process.ended => Served::Exited(how),
            () = liveness::failed(probe, &self.replica) => Served::Hung(format!(
                "it was killed, since {} liveness probes in a row got no answer",
                probe.failure_threshold
            )),
            () = self.replica.drained() => Served::Drained,
            () = shutdown => Served::Drained,
        }
    }

    /// Stops the process and waits until it has exited.
    pub(crate) async fn stop(self) -> Ended {
        self.process.stop.cancel();
        self.process.ended.await;
        Ended::Stopped
    }

    /// Aborts the requests in flight, kills the process and waits until it has exited.
    pub(crate) async fn kill(self, why: String) -> Ended {
        self.replica.hung.cancel();
        self.process.kill.cancel();
        self.process.ended.await;
        Ended::Crashed(why)
    }
}
