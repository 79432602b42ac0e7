//! Average over a sliding window of one-second buckets, as Knative's autoscaler computes it.

use std::{collections::VecDeque, time::Duration};

/// One bucket for each second of a window.
#[derive(Debug)]
pub(crate) struct Buckets {
    window: u64,
    /// The second of the first sample since the last gap of a whole window.
    first: u64,
    sums: VecDeque<(u64, f64)>,
}

impl Buckets {
    pub(crate) fn new(window: Duration) -> Self {
        Self { window: window.as_secs_f64().ceil() as u64, first: 0, sums: VecDeque::new() }
    }

    pub(crate) fn record(&mut self, now: Duration, value: f64) {
        let now = now.as_secs();
        match self.sums.back_mut() {
            Some((second, sum)) if *second >= now => {
                *sum += value;
                return;
            }
            Some((second, _)) if now - *second < self.window => {}
            _ => {
                self.sums.clear();
                self.first = now;
            }
        }
        self.sums.push_back((now, value));
        while self.sums.front().is_some_and(|(second, _)| second + self.window <= now) {
            self.sums.pop_front();
        }
    }

    /// Divides by the seconds of the window since the first sample, so that a new function is not averaged with its
    /// past.
    pub(crate) fn average(&self, now: Duration) -> f64 {
        let Some((last, _)) = self.sums.back() else { return 0.0 };
        let now = now.as_secs().max(*last);
        let silent = now - last;
        if silent >= self.window {
            return 0.0;
        }
        let sum: f64 = self.sums.iter().filter(|(s, _)| s + self.window > now).map(|(_, v)| v).sum();
        let seconds = (last - self.first + 1).min(self.window - silent);
        // Rounds to six digits like Knative, so that floating-point residue does not keep a replica.
        (sum / seconds as f64 * 1e6).round() / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_seconds_with_samples_count() {
        let mut buckets = Buckets::new(Duration::from_secs(6));
        let at = Duration::from_secs;
        assert_eq!(buckets.average(at(0)), 0.0);
        buckets.record(at(10), 4.0);
        assert_eq!(buckets.average(at(10)), 4.0);
        buckets.record(at(11), 2.0);
        assert_eq!(buckets.average(at(11)), 3.0);
        // Five seconds of silence: only the sample of second 11 is in the window, in its one valid bucket.
        assert_eq!(buckets.average(at(16)), 2.0);
        assert_eq!(buckets.average(at(17)), 0.0);
    }
}
