//! Unexpected exits of a function's processes: count, reason, crash loop, backoff, and what is reported.

use std::time::Duration;

/// Number of consecutive failed starts from which requests are refused instead of queued.
pub(crate) const CRASH_LOOP_THRESHOLD: u32 = 3;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// The crashes of one function's replicas.
#[derive(Debug, Default)]
pub(crate) struct Crashes {
    /// Since the runtime began.
    pub(crate) total: u64,
    /// Why the last one ended.
    pub(crate) last_error: Option<String>,
    /// Consecutive crashes without a response between them.
    failed: u32,
    /// Last reason reported since the last response.
    reported: Option<String>,
}

impl Crashes {
    /// Records a crash. Returns a message to report, or `None` if this reason was reported already.
    pub(crate) fn record(&mut self, why: &str) -> Option<String> {
        self.total += 1;
        self.failed += 1;
        self.last_error = Some(why.to_owned());
        // Ignore digits: process ids, thread ids and ports differ each time.
        let reason = why.replace(|c: char| c.is_ascii_digit(), "");
        let is_new = self.reported.as_ref() != Some(&reason);
        self.reported = Some(reason);
        match (self.failed == CRASH_LOOP_THRESHOLD, is_new) {
            (true, _) => Some(format!(
                "{why}; that is a crash loop ({CRASH_LOOP_THRESHOLD} in a row), the next starts wait longer"
            )),
            (false, true) => Some(why.to_owned()),
            (false, false) => None,
        }
    }

    /// Ends a crash loop, after a response or a stable run.
    pub(crate) fn recovered(&mut self) {
        self.failed = 0;
        self.reported = None;
    }

    /// Whether the function is in a crash loop.
    pub(crate) fn is_loop(&self) -> bool {
        self.failed >= CRASH_LOOP_THRESHOLD
    }

    /// Delay before the next start.
    pub(crate) fn backoff(&self) -> Duration {
        match self.failed {
            // Replace a replica that crashed once without delay.
            0 | 1 => Duration::ZERO,
            n => FIRST_BACKOFF.saturating_mul(1 << (n - 2).min(10)).min(MAX_BACKOFF),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_and_the_loop_once_more() {
        let mut crashes = Crashes::default();
        let told: Vec<_> = (0..10).filter_map(|n| crashes.record(&format!("thread {n} panicked"))).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[1].contains("crash loop") && told[1].contains("panicked"), "{told:?}");
        assert_eq!((crashes.total, crashes.is_loop(), crashes.backoff()), (10, true, MAX_BACKOFF));
        assert!(crashes.record("signal: 9").is_some());
        crashes.recovered();
        assert!(!crashes.is_loop() && crashes.backoff().is_zero());
        assert_eq!(crashes.record("signal: 9").as_deref(), Some("signal: 9"));
    }
}
