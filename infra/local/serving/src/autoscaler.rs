//! Knative's pod autoscaler (KPA) as arithmetic: samples of concurrency in, a number of replicas out.
//! Pure: no clock, processes or requests. Times are durations since a fixed epoch.

use std::{collections::BTreeMap, time::Duration};

use crate::buckets::Buckets;

/// What every autoscaling annotation starts with.
pub const PREFIX: &str = "autoscaling.knative.dev/";
/// Target concurrency of a function without a limit.
const TARGET_DEFAULT: f64 = 100.0;
/// The lowest target.
const TARGET_MIN: f64 = 0.01;
/// Maximum factor by which one decision scales up.
const MAX_SCALE_UP: f64 = 1000.0;
/// Maximum factor by which one decision scales down.
const MAX_SCALE_DOWN: f64 = 2.0;

/// An unknown annotation, or an invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key}: {why}")]
pub struct AnnotationError {
    key: String,
    why: String,
}

/// Autoscaling settings from a manifest's annotations; the defaults are Knative's.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Minimum number of replicas.
    pub min_scale: u32,
    /// Maximum number of replicas; 0 means no limit.
    pub max_scale: u32,
    /// Number of replicas at startup. Knative's default is 1; here it is 0, so that nothing runs before it is called.
    pub initial_scale: u32,
    /// Minimum number of replicas when scaled up from zero.
    pub activation_scale: u32,
    /// Target concurrency per replica, already multiplied by the target utilization.
    pub target: f64,
    /// Length of the stable window.
    pub window: Duration,
    /// Length of the panic window.
    pub panic_window: Duration,
    /// Panic mode starts when the panic window wants this factor of the ready replicas.
    pub panic_threshold: f64,
    /// How long the last replica is kept before scaling to zero.
    pub retention: Duration,
}

impl Settings {
    /// Reads the annotations of a function whose replicas take `concurrency` requests at once (0: any number).
    ///
    /// # Errors
    /// An autoscaling annotation that is unknown, or a value out of its range.
    pub fn read(annotations: &BTreeMap<String, String>, concurrency: u32) -> Result<Self, AnnotationError> {
        let mut settings = Self {
            min_scale: 0,
            max_scale: 0,
            initial_scale: 0,
            activation_scale: 1,
            target: 0.0,
            window: Duration::from_secs(60),
            panic_window: Duration::ZERO,
            panic_threshold: 2.0,
            retention: Duration::ZERO,
        };
        let limit = if concurrency == 0 { TARGET_DEFAULT } else { f64::from(concurrency) };
        let (mut total, mut utilization, mut panic_window) = (limit, 70.0, 10.0);
        for (key, value) in annotations {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            let fault = |why: &str| AnnotationError { key: key.clone(), why: format!("`{value}` {why}") };
            let whole = || value.parse().map_err(|_| fault("is no whole number from 0"));
            let number = |from: f64, to: f64| match value.parse::<f64>() {
                Ok(n) if (from..=to).contains(&n) => Ok(n),
                _ => Err(fault(&format!("is no number from {from} to {to}"))),
            };
            let time = |from, to| match go_duration(value) {
                Some(time) if (from..=to).contains(&time.as_secs()) => Ok(time),
                _ => Err(fault(&format!("is no duration like 1m30s from {from}s to {to}s"))),
            };
            match name {
                "min-scale" => settings.min_scale = whole()?,
                "max-scale" => settings.max_scale = whole()?,
                "initial-scale" => settings.initial_scale = whole()?,
                "activation-scale" => settings.activation_scale = whole()?.max(1),
                "target" => {
                    let aim = number(TARGET_MIN, 1e9)?;
                    total = if concurrency == 0 { aim } else { aim.min(limit) };
                }
                "target-utilization-percentage" => utilization = number(1.0, 100.0)?,
                "window" => settings.window = time(6, 3600)?,
                "panic-window-percentage" => panic_window = number(1.0, 100.0)?,
                "panic-threshold-percentage" => {
                    settings.panic_threshold = number(110.0, 1000.0)? / 100.0;
                }
                "scale-to-zero-pod-retention-period" => settings.retention = time(0, 3600)?,
                "metric" if value == "concurrency" => {}
                "metric" => return Err(fault("is not supported here; `concurrency` is")),
                _ => return Err(fault("stands at an annotation that is not known here")),
            }
        }
        settings.target = (total * utilization / 100.0).max(TARGET_MIN);
        settings.panic_window = settings.window.mul_f64(panic_window / 100.0).max(Duration::from_secs(1));
        if settings.max_scale != 0 && settings.max_scale < settings.min_scale {
            let key = format!("{PREFIX}max-scale");
            return Err(AnnotationError { key, why: "is less than min-scale".into() });
        }
        Ok(settings)
    }

    /// Clamps a number of replicas to `min-scale` and `max-scale`.
    #[must_use]
    pub fn bounded(&self, replicas: u32) -> u32 {
        let most = if self.max_scale == 0 { u32::MAX } else { self.max_scale };
        replicas.max(self.min_scale).min(most)
    }
}

/// Reads a Go duration of hours, minutes and seconds, such as `1m30s`.
fn go_duration(text: &str) -> Option<Duration> {
    let (mut seconds, mut rest) = (0_u64, text);
    while !rest.is_empty() {
        let at = rest.find(|c: char| !c.is_ascii_digit())?;
        let each = match rest.as_bytes()[at] {
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        let part: u64 = rest[..at].parse().ok()?;
        seconds = seconds.checked_add(part.checked_mul(each)?)?;
        rest = &rest[at + 1..];
    }
    (!text.is_empty()).then(|| Duration::from_secs(seconds))
}

/// The autoscaler of one function.
#[derive(Debug)]
pub struct Autoscaler {
    settings: Settings,
    stable: Buckets,
    panic: Buckets,
    panic_since: Option<Duration>,
    max_in_panic: u32,
    unwanted_since: Option<Duration>,
}

impl Autoscaler {
    /// Starts without samples.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let (stable, panic) = (Buckets::new(settings.window), Buckets::new(settings.panic_window));
        Self { settings, stable, panic, panic_since: None, max_in_panic: 0, unwanted_since: None }
    }

    /// Records the average concurrency of the second that ended at `now`.
    pub fn record(&mut self, now: Duration, concurrency: f64) {
        self.stable.record(now, concurrency);
        self.panic.record(now, concurrency);
    }

    /// Returns the desired number of replicas, given the number of `ready` ones.
    pub fn decide(&mut self, now: Duration, ready: u32) -> u32 {
        let n = f64::from(ready.max(1));
        let wanted = |average: f64| (average / self.settings.target).ceil();
        let (stable, panic) = (wanted(self.stable.average(now)), wanted(self.panic.average(now)));
        self.update_panic_mode(now, panic / n >= self.settings.panic_threshold);
        let mut desired = self.clamped(stable, n);
        if self.panic_since.is_some() {
            desired = desired.max(self.clamped(panic, n)).max(self.max_in_panic);
            self.max_in_panic = desired;
        }
        let desired = self.retained(now, desired);
        self.settings.bounded(desired)
    }

    /// Panic mode lasts until one stable window after the threshold was last exceeded.
    fn update_panic_mode(&mut self, now: Duration, over: bool) {
        if over {
            self.panic_since = Some(now);
        } else if self.panic_since.is_some_and(|since| since + self.settings.window < now) {
            self.panic_since = None;
            self.max_in_panic = 0;
        }
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped, never negative")]
    fn clamped(&self, wanted: f64, n: f64) -> u32 {
        let within = wanted.max((n / MAX_SCALE_DOWN).floor()).min((n * MAX_SCALE_UP).ceil()) as u32;
        if wanted > 0.0 { within.max(self.settings.activation_scale) } else { within }
    }

    fn retained(&mut self, now: Duration, desired: u32) -> u32 {
        if desired > 0 {
            self.unwanted_since = None;
            return desired;
        }
        let since = *self.unwanted_since.get_or_insert(now);
        u32::from(now < since + self.settings.retention)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (format!("{PREFIX}{k}"), (*v).to_owned())).collect()
    }

    fn scaler(pairs: &[(&str, &str)], concurrency: u32) -> Autoscaler {
        Autoscaler::new(Settings::read(&annotations(pairs), concurrency).unwrap())
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// Concurrency limit, annotations, constant concurrency for a minute, replicas → desired.
    #[test]
    fn steady_load_follows_the_formula() {
        type Case<'a> = (u32, &'a [(&'a str, &'a str)], f64, u32, u32);
        let cases: &[Case] = &[
            (100, &[], 0.0, 1, 0),
            (100, &[], 0.001, 1, 1),
            (100, &[], 70.0, 1, 1),
            (100, &[], 70.1, 1, 2),
            (0, &[], 700.0, 10, 10),
            (10, &[], 70.0, 10, 10),
            (1, &[], 1.0, 2, 2),
            // A decision removes at most half of the replicas, rounded down.
            (100, &[], 1.0, 10, 5),
            (100, &[], 1.0, 5, 2),
            (100, &[], 0.0, 3, 1),
            // A decision scales up by a factor of at most 1,000.
            (1, &[], 10_000.0, 1, 1_000),
            (100, &[("target", "10")], 70.0, 10, 10),
            (5, &[("target", "10")], 35.0, 10, 10),
            (100, &[("target-utilization-percentage", "100")], 100.0, 1, 1),
            (100, &[("max-scale", "3")], 1_000.0, 3, 3),
            (100, &[("min-scale", "2")], 0.0, 2, 2),
            (100, &[("activation-scale", "4")], 1.0, 4, 4),
            (100, &[("activation-scale", "4")], 0.0, 1, 0),
        ];
        for (limit, pairs, load, ready, desired) in cases {
            let mut scaler = scaler(pairs, *limit);
            (0..60).for_each(|s| scaler.record(seconds(s), *load));
            assert_eq!(scaler.decide(seconds(59), *ready), *desired, "{limit} {pairs:?} {load} {ready}");
        }
    }

    #[test]
    fn a_burst_panics_and_does_not_scale_down_for_a_window() {
        let mut scaler = scaler(&[], 100);
        (0..54).for_each(|s| scaler.record(seconds(s), 0.0));
        (54..60).for_each(|s| scaler.record(seconds(s), 210.0));
        // Stable: 6 × 210 / 60 = 21 → 1. Panic: 210 / 70 = 3, and 3 / 1 ≥ 2.
        assert_eq!(scaler.decide(seconds(59), 1), 3);
        (60..120).for_each(|s| scaler.record(seconds(s), 0.0));
        assert_eq!(scaler.decide(seconds(119), 3), 3);
        // Just over one window later: nothing in either window, half of three stay, then none.
        assert_eq!(scaler.decide(seconds(120), 3), 1);
        assert_eq!(scaler.decide(seconds(122), 1), 0);
    }

    #[test]
    fn below_the_threshold_there_is_no_panic() {
        let mut scaler = scaler(&[], 100);
        (0..54).for_each(|s| scaler.record(seconds(s), 0.0));
        (54..60).for_each(|s| scaler.record(seconds(s), 210.0));
        // 3 / 2 < 2.
        assert_eq!(scaler.decide(seconds(59), 2), 1);
    }

    #[test]
    fn the_last_replica_goes_a_window_after_the_last_request() {
        let mut scaler = scaler(&[], 100);
        scaler.record(seconds(0), 1.0);
        (1..60).for_each(|s| scaler.record(seconds(s), 0.0));
        assert_eq!(scaler.decide(seconds(59), 1), 1);
        scaler.record(seconds(60), 0.0);
        assert_eq!(scaler.decide(seconds(60), 1), 0);
    }

    #[test]
    fn retention_keeps_the_last_replica_longer() {
        let mut scaler = scaler(&[("scale-to-zero-pod-retention-period", "10s")], 100);
        scaler.record(seconds(0), 0.0);
        assert_eq!(scaler.decide(seconds(0), 1), 1);
        assert_eq!(scaler.decide(seconds(9), 1), 1);
        assert_eq!(scaler.decide(seconds(10), 1), 0);
    }

    #[test]
    fn a_bad_annotation_is_named() {
        for (key, value) in
            [("min-scal", "1"), ("min-scale", "-1"), ("window", "5s"), ("metric", "cpu"), ("target", "NaN")]
        {
            let error = Settings::read(&annotations(&[(key, value)]), 100).unwrap_err().to_string();
            assert!(error.contains(&format!("{PREFIX}{key}")), "{error}");
        }
        assert!(Settings::read(&annotations(&[("min-scale", "2"), ("max-scale", "1")]), 1).is_err());
    }
}
