//! The delay before something that failed is tried again, for where attempts are not one loop. A loop uses `backon`.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// A delay that doubles with each failure in a row, up to a bound.
#[derive(Debug)]
pub struct Backoff {
    schedule: ExponentialBuilder,
    delays: ExponentialBackoff,
    delay: Duration,
}

impl Backoff {
    /// No delay now, `min` after the first failure, and never more than `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        let schedule = ExponentialBuilder::new().with_min_delay(min).with_max_delay(max).without_max_times();
        Self { schedule, delays: schedule.build(), delay: Duration::ZERO }
    }

    /// The delay before the next attempt.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// Records a failed attempt.
    pub fn failed(&mut self) {
        self.delay = self.delays.next().unwrap_or(self.delay);
    }

    /// Records a success: the next attempt begins without delay.
    pub fn reset(&mut self) {
        *self = Self { schedule: self.schedule, delays: self.schedule.build(), delay: Duration::ZERO };
    }
}

impl Default for Backoff {
    /// From 10 ms to 500 ms, which bounds how long a store that has recovered waits.
    fn default() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_millis(500))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_grows_up_to_a_bound() {
        let mut backoff = Backoff::default();
        let mut delays = || {
            let delay = backoff.delay();
            backoff.failed();
            (delay.as_secs_f64() * 1e3).round()
        };
        assert_eq!([delays(), delays(), delays(), delays()], [0.0, 10.0, 20.0, 40.0]);
        for _ in 0..10_000 {
            backoff.failed();
        }
        assert_eq!(backoff.delay(), Duration::from_millis(500));
        backoff.reset();
        assert_eq!(backoff.delay(), Duration::ZERO);
        backoff.failed();
        assert_eq!(backoff.delay(), Duration::from_millis(10));
    }
}
