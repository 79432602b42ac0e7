//! Processes that ended without being asked to: how many, why, and which of it operators are told.

use std::time::Duration;

/// After so many failed starts in a row, requests no longer wait (a crash loop).
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
    /// In a row without an answered request between them.
    failed: u32,
    /// What operators were told since the last answered request.
    told: Option<String>,
}

impl Crashes {
    /// Counts a crash. `Some` with what operators are to be told: a reason once, not at each of its repetitions.
    pub(crate) fn record(&mut self, why: &str) -> Option<String> {
        self.total += 1;
        self.failed += 1;
        self.last_error = Some(why.to_owned());
        // Numbers differ each time: process and thread ids, ports.
        let reason = why.replace(|c: char| c.is_ascii_digit(), "");
        let is_new = self.told.as_ref() != Some(&reason);
        self.told = Some(reason);
        match (self.failed == CRASH_LOOP_THRESHOLD, is_new) {
            (true, _) => Some(format!(
                "{why}; that is a crash loop ({CRASH_LOOP_THRESHOLD} in a row), the next starts wait longer"
            )),
            (false, true) => Some(why.to_owned()),
            (false, false) => None,
        }
    }

    /// A request was answered, so that the next crash begins anew.
    pub(crate) fn recovered(&mut self) {
        self.failed = 0;
        self.told = None;
    }

    /// Whether it crashes whenever it is started.
    pub(crate) fn is_loop(&self) -> bool {
        self.failed >= CRASH_LOOP_THRESHOLD
    }

    /// How long the next start waits.
    pub(crate) fn backoff(&self) -> Duration {
        match self.failed {
            // A replica that was killed once is replaced at once.
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
