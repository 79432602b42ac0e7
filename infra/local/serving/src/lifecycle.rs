//! One replica from its start to its end, in a task of its own. Whatever ends the task, a panic included, the pool knows
//! afterwards that the replica is gone.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use chrono::Utc;
use futures_util::FutureExt;
use http::Uri;
use shared::supervise::panic_message;
use tokio::time::{sleep, timeout};

use crate::{
    function::Function,
    pool::Refusal,
    process::Launched,
    replica::Replica,
    status::{Change, ColdStart},
};

/// How long a process whose first answer broke off may take to be seen as ended.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long requests under way may take after the runtime was told to stop.
const SHUTDOWN_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// A replica that lived so long before it crashed does not count towards a crash loop.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// How a replica ended.
enum Ended {
    Stopped,
    Crashed(String),
}

/// A replica that answered, and when.
type Ready = OnceLock<(Arc<Replica>, Instant)>;

impl Function {
    /// Starts a replica after `backoff` and stays until its end. The caller counted it as starting.
    pub(crate) async fn run_replica(self: Arc<Self>, backoff: Duration) {
        let ready = Ready::new();
        let running = AssertUnwindSafe(self.start_and_serve(backoff, &ready)).catch_unwind();
        let ended = running.await.unwrap_or_else(|panic| {
            let message = panic_message(&*panic);
            let name = format!("replica of {}", self.spec.name);
            self.context.supervised.register(&name).panicked(&name, &message);
            Ended::Crashed(format!("the task that watches it panicked: {message}"))
        });
        self.ended(ended, &ready);
    }

    fn ended(self: &Arc<Self>, ended: Ended, ready: &Ready) {
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
            let news = pool.crashes.record(&why);
            if let Some(why) = news {
                self.announce(Change::Crashed { function, why });
            }
            if ready.get().is_none() && pool.crashes.is_loop() {
                pool.refuse(&Refusal::CrashLoop(why));
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
        let (begun, started) = (Instant::now(), Utc::now());
        let mut process = match self.context.launcher.launch(&self.spec) {
            Ok(process) => process,
            Err(error) => return Ended::Crashed(format!("could not be started: {error}")),
        };
        let replica = Arc::new(Replica::new(&process, started));
        if let Some(ended) = self.first_answer(&replica, &mut process).await {
            return ended;
        }
        let _ = ready.set((replica.clone(), Instant::now()));
        self.joined(&replica, ColdStart { time: started, ms: begun.elapsed().as_secs_f64() * 1e3 });
        self.serve(&replica, process).await
    }

    /// Waits until the process answers; `Some` when it will not. A process that dies at its start takes no request
    /// with it.
    async fn first_answer(&self, replica: &Replica, process: &mut Launched) -> Option<Ended> {
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

    fn joined(self: &Arc<Self>, replica: &Arc<Replica>, cold: ColdStart) {
        let mut pool = self.pool();
        pool.starting -= 1;
        pool.remember(cold);
        if pool.stopping {
            replica.draining.cancel();
            return;
        }
        pool.replicas.push(replica.clone());
        self.dispatch_waiting(&mut pool);
    }

    /// Those that wait go to another replica.
    fn give_up(self: &Arc<Self>, replica: &Arc<Replica>) {
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
                self.give_up(replica);
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
