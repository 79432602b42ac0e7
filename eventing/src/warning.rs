//! Rate-limits a repeated warning: it is logged when it first occurs or changes, then once a minute.

use std::time::Duration;

use tokio::time::Instant;

/// Interval at which the same warning is logged again.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// The last warning about one thing.
#[derive(Debug, Default)]
pub(crate) struct Warning {
    last: Option<(String, Instant)>,
    suppressed: u64,
}

impl Warning {
    /// Counts a failure. If it is due to be logged, returns how many like it were suppressed before.
    pub(crate) fn due(&mut self, why: &str) -> Option<u64> {
        let now = Instant::now();
        if let Some((last, at)) = &self.last
            && last == why
            && now.duration_since(*at) < REPEAT_INTERVAL
        {
            self.suppressed += 1;
            return None;
        }
        self.last = Some((why.to_owned(), now));
        Some(std::mem::take(&mut self.suppressed))
    }

    /// Ends the warning. Returns whether there was one.
    pub(crate) fn clear(&mut self) -> bool {
        self.suppressed = 0;
        self.last.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_failure_is_logged_once_a_minute() {
        let mut warning = Warning::default();
        let logged =
            |warning: &mut Warning, why| (0..100).filter_map(|_| warning.due(why)).collect::<Vec<_>>();
        assert_eq!(logged(&mut warning, "refused"), [0]);
        assert_eq!(logged(&mut warning, "timed out"), [99]);
        tokio::time::advance(REPEAT_INTERVAL).await;
        assert_eq!(logged(&mut warning, "timed out"), [99]);
        assert!(warning.clear() && !warning.clear());
        assert_eq!(warning.due("timed out"), Some(0));
    }
}
