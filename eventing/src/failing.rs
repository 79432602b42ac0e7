//! A log that fails for a while: how long to wait, what to print, and when to give up on a client.

use std::time::Duration;

use backend_log::LogError;
use tokio::time::Instant;

use crate::{progress::Progress, source::Source, warning::Warning};

/// Delay before the log is asked again after a failure.
pub(crate) const RETRY_BACKOFF: Duration = Duration::from_millis(500);
/// How long a Kafka client may fail before it is replaced. It recovers by itself from outages, and replacing it triggers
/// a rebalance; but it never recovers from a fatal error.
pub(crate) const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);

/// An error with its causes.
pub(crate) fn chain(error: &LogError) -> String {
    framework::error::Error::unavailable(error).to_string()
}

/// One kind of call that fails now, or did not fail.
#[derive(Default)]
pub(crate) struct Failing {
    /// When it failed first since it worked.
    since: Option<Instant>,
    warning: Warning,
}

impl Failing {
    pub(crate) fn failed(&mut self, source: &Source, error: &LogError, what: &str, progress: &Progress) {
        self.since.get_or_insert_with(Instant::now);
        let why = chain(error);
        if let Some(suppressed) = self.warning.due(&why) {
            tracing::warn!(source = source.name, error = why, suppressed, "{what}");
            progress.health.failed(format!("{what}: {why}"));
        }
    }

    pub(crate) fn recovered(&mut self, progress: &Progress) {
        if self.since.take().is_some() {
            self.warning.clear();
            progress.health.recovered();
        }
    }

    /// Whether it has failed for `RECOVERY_TIMEOUT`. If so, the timeout starts anew.
    pub(crate) fn is_lasting(&mut self) -> bool {
        let lasting = self.since.is_some_and(|since| since.elapsed() >= RECOVERY_TIMEOUT);
        if lasting {
            self.since = None;
        }
        lasting
    }
}
