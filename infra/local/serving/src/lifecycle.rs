//! Lifecycle of one replica: start, startup probe, serve, drain, exit. Runs in its own task, which removes the replica
//! from the pool however it ends, also by a panic.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use chrono::Utc;
use framework::supervise::panic_message;
use futures_util::FutureExt;
use http::Uri;
use tokio::time::{sleep, timeout};

use crate::{
    function::Function,
    pool::Refusal,
    process::Launched,
    replica::Replica,
    status::{Change, ColdStart},
};

/// How long to wait for the exit of a process whose startup probe failed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time limit for requests in flight after the runtime was told to stop.
const SHUTDOWN_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// A replica that ran at least this long before it crashed does not count towards a crash loop.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// How a replica ended.
enum Ended {
    Stopped,
    Crashed(String),
}

/// The replica once it is ready, and since when.
type Ready = OnceLock<(Arc<Replica>, Instant)>;

impl Function {
    /// Starts a replica after `backoff` and supervises it until it exits. The caller has counted it in
    /// `Pool::starting`.
    pub(crate) async fn run_replica(self: Arc<Self>, backoff: Duration) {
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
                self.announce(Change::Crashed { function, why });
            }
            if ready.get().is_none() && pool.crashes.is_loop() {
                pool.refuse_waiting(&Refusal::CrashLoop(why));
            }
        }
        self.activate(&mut pool);
    }

    async fn start_and_serve(self: &Arc<Self>, backoff: Duration, ready: &Ready) -> Ended {
        let stop = &self.context.stop;
        tokio::select! {
            () = sleep(backoff) => {}
            () = stop.cancelled() => {}
        }
        if stop.is_cancelled() {
            return Ended::Stopped;
        }
        let (start, started) = (Instant::now(), Utc::now());
        let mut process = match self.context.launcher.launch(&self.spec) {
            Ok(process) => process,
            Err(error) => return Ended::Crashed(format!("could not be started: {error}")),
        };
        let replica = Arc::new(Replica::new(&process, started));
        if let Some(ended) = self.startup_probe(&replica, &mut process).await {
            return ended;
        }
        let _ = ready.set((replica.clone(), Instant::now()));
        self.add_ready(&replica, ColdStart { time: started, ms: start.elapsed().as_secs_f64() * 1e3 });
        self.serve(&replica, process).await
    }

    /// Probes the process until it responds. Returns how it ended if it never does. Requests are sent only after this,
    /// so a crash at startup loses none.
    async fn startup_probe(&self, replica: &Replica, process: &mut Launched) -> Option<Ended> {
        let path = Uri::from_static("/healthz");
        let answer = tokio::select! {
            answer = timeout(self.spec.start_timeout, replica.probe(&path)) => answer,
            how = &mut process.ended => return Some(Ended::Crashed(how)),
            () = self.context.stop.cancelled() => {
                process.stop.cancel();
                (&mut process.ended).await;
                return Some(Ended::Stopped);
            }
        };
        let how = match answer {
            Ok(Ok(_)) => return None,
            Ok(Err(_)) => timeout(EXIT_TIMEOUT, &mut process.ended).await.ok(),
            Err(_) => None,
        };
        if how.is_none() {
            process.kill.cancel();
            (&mut process.ended).await;
        }
        Some(Ended::Crashed(how.unwrap_or_else(|| {
            format!(
                "it was killed, since it did not answer within {:?} of its start",
                self.spec.start_timeout
            )
        })))
    }

    /// Adds a ready replica to the pool.
    fn add_ready(self: &Arc<Self>, replica: &Arc<Replica>, cold: ColdStart) {
        let mut pool = self.pool();
        pool.starting -= 1;
        pool.record_cold_start(cold);
        if pool.stopping {
            replica.draining.cancel();
            return;
        }
        pool.replicas.push(replica.clone());
        self.dispatch_waiting(&mut pool);
    }

    /// Removes a hung replica from the pool, and starts another if requests wait and none is left.
    fn replace_hung(self: &Arc<Self>, replica: &Arc<Replica>) {
        let mut pool = self.pool();
        pool.remove(replica);
        self.activate(&mut pool);
    }

    async fn serve(self: &Arc<Self>, replica: &Arc<Replica>, mut process: Launched) -> Ended {
        let probe = &self.spec.liveness;
        let shutdown = async {
            self.context.stop.cancelled().await;
            sleep(SHUTDOWN_DRAIN_TIMEOUT).await;
        };
        tokio::select! {
            how = &mut process.ended => return Ended::Crashed(how),
            () = probe.failed(replica) => {
                self.replace_hung(replica);
                replica.hung.cancel();
                process.kill.cancel();
                process.ended.await;
                return Ended::Crashed(format!(
                    "it was killed, since {} liveness probes in a row got no answer",
                    probe.failure_threshold
                ));
            }
            () = replica.drained() => {}
            () = shutdown => {}
        }
        process.stop.cancel();
        process.ended.await;
        Ended::Stopped
    }
}
