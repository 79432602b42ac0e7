//! How a source delivers its events.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::resource::Destination;

/// Retries, timeout and dead-letter sink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DeliverySpec {
    /// Attempts after the first.
    pub retry: Option<u32>,
    /// How the delay grows from retry to retry.
    pub backoff_policy: Option<Backoff>,
    /// The base of the delay.
    pub backoff_delay: Option<IsoDuration>,
    /// Timeout of one attempt.
    pub timeout: Option<IsoDuration>,
    /// Where undeliverable events go.
    pub dead_letter_sink: Option<Destination>,
}

/// How the delay between attempts grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backoff {
    /// In proportion to the number of attempts.
    Linear,
    /// Doubles with each attempt.
    Exponential,
}

/// A duration in ISO 8601, like `PT0.3S`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct IsoDuration(pub Duration);

impl TryFrom<String> for IsoDuration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed =
            iso8601::duration(&text).map_err(|_| format!("`{text}` is no ISO 8601 duration like PT0.3S"))?;
        Ok(Self(parsed.into()))
    }
}

/// Extensions that a source sets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// By name.
    #[serde(default)]
    pub extensions: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_in_iso_8601() {
        for (text, millis) in
            [("PT0.02S", Some(20)), ("PT30S", Some(30_000)), ("PT1M", Some(60_000)), ("5s", None)]
        {
            let parsed = IsoDuration::try_from(text.to_owned()).ok();
            assert_eq!(parsed.map(|d| d.0), millis.map(Duration::from_millis), "{text}");
        }
    }
}
