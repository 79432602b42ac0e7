//! Concurrency of one function over time: requests in flight and waiting. Uses only the monotonic clock, so that a
//! wall-clock step does not affect scaling.

use std::time::Instant;

/// The integral of concurrency since the last sample.
pub(crate) struct Load {
    level: f64,
    area: f64,
    since: Instant,
    sampled: Instant,
}

impl Load {
    pub(crate) fn new(now: Instant) -> Self {
        Self { level: 0.0, area: 0.0, since: now, sampled: now }
    }

    /// Current concurrency.
    pub(crate) fn level(&self) -> f64 {
        self.level
    }

    /// Changes the current concurrency by `by`, which may be negative.
    pub(crate) fn change(&mut self, by: f64) {
        let now = Instant::now();
        self.area += self.level * now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.level += by;
    }

    /// The average concurrency since the last sample.
    pub(crate) fn sample(&mut self) -> f64 {
        self.change(0.0);
        let seconds = self.since.saturating_duration_since(self.sampled).as_secs_f64();
        let average = if seconds > 0.0 { self.area / seconds } else { self.level };
        (self.area, self.sampled) = (0.0, self.since);
        average
    }
}
