//! Liveness probes as a kubelet sends them, to detect a replica that hangs (stopped, deadlocked).
//! Probes only while requests are in flight, so that an idle replica uses no CPU.

use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    connection::Failure,
    replica::{Replica, is_gone},
    spec::LivenessProbe,
};

/// Returns when the replica has failed `failure_threshold` consecutive probes.
pub(crate) async fn failed(probe: &LivenessProbe, replica: &Replica) {
    let mut interval = interval(probe.period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut failures, mut answers) = (0, replica.answers());
    while failures < probe.failure_threshold.max(1) {
        interval.tick().await;
        if failures == 0 && replica.in_flight() == 0 {
            continue;
        }
        let alive = is_alive(probe, replica).await;
        // A response since the last probe proves liveness too: on a busy machine a probe queues behind requests.
        let answered = std::mem::replace(&mut answers, replica.answers()) != answers;
        failures = if alive || answered { 0 } else { failures + 1 };
        replica.set_suspect(failures > 0);
    }
}

async fn is_alive(probe: &LivenessProbe, replica: &Replica) -> bool {
    match timeout(probe.timeout, replica.probe(&probe.path)).await {
        Ok(Ok(status)) => status.as_u16() < 400,
        // A local error, such as a lack of file descriptors, says nothing about the replica.
        Ok(Err(Failure::NotSent(error, _))) => !is_gone(&error),
        Ok(Err(Failure::Broken(_) | Failure::TimedOut)) | Err(_) => false,
    }
}
