//! Liveness probes as a kubelet sends them, to detect a replica that hangs (stopped, deadlocked).
//! Probes only while requests are in flight, so that an idle replica uses no CPU.

use std::time::Duration;

use http::Uri;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    connection::Failure,
    replica::{Replica, is_gone},
};

/// Settings of the probe: the container's `livenessProbe`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivenessProbe {
    /// Path and query of the `GET`.
    pub path: Uri,
    /// Interval between probes (`periodSeconds`).
    pub period: Duration,
    /// Time limit of one probe (`timeoutSeconds`).
    pub timeout: Duration,
    /// Consecutive failures after which the replica is killed (`failureThreshold`).
    pub failure_threshold: u32,
}

impl Default for LivenessProbe {
    fn default() -> Self {
        Self {
            path: Uri::from_static("/healthz"),
            period: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            failure_threshold: 3,
        }
    }
}

impl LivenessProbe {
    /// Returns when the replica has failed `failure_threshold` consecutive probes.
    pub(crate) async fn failed(&self, replica: &Replica) {
        let mut interval = interval(self.period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut failures, mut answers) = (0, replica.answers());
        while failures < self.failure_threshold.max(1) {
            interval.tick().await;
            if failures == 0 && replica.in_flight() == 0 {
                continue;
            }
            let alive = self.is_alive(replica).await;
            // A response since the last probe proves liveness too: on a busy machine a probe queues behind requests.
            let answered = std::mem::replace(&mut answers, replica.answers()) != answers;
            failures = if alive || answered { 0 } else { failures + 1 };
            replica.set_suspect(failures > 0);
        }
    }

    async fn is_alive(&self, replica: &Replica) -> bool {
        match timeout(self.timeout, replica.probe(&self.path)).await {
            Ok(Ok(status)) => status.as_u16() < 400,
            // A local error, such as a lack of file descriptors, says nothing about the replica.
            Ok(Err(Failure::NotSent(error, _))) => !is_gone(&error),
            Ok(Err(Failure::Broken(_) | Failure::TimedOut)) | Err(_) => false,
        }
    }
}
