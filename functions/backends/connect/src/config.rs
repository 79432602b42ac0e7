//! Errors and units of configuration values.

use std::{fmt, time::Duration};

/// A key that is missing or has an invalid value; one line that names it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {why}")]
pub struct ConfigError {
    /// The key.
    pub key: String,
    /// What is wrong and what would be valid; never the value of a secret.
    pub why: String,
}

impl ConfigError {
    /// An error for a key.
    pub fn new(key: &str, why: impl fmt::Display) -> Self {
        Self { key: key.to_owned(), why: why.to_string() }
    }

    /// The URL's scheme is unknown. The rest of the URL is not shown, because it may contain a password.
    pub fn unknown_url(key: &str, url: &str, known: &[&str]) -> Self {
        let is_scheme = |text: &str| text.len() < 16 && text.bytes().all(|b| b.is_ascii_lowercase());
        let scheme = url.split_once(':').map(|(scheme, _)| scheme).filter(|scheme| is_scheme(scheme));
        let scheme = scheme.unwrap_or("a URL without a scheme");
        Self::new(key, format!("`{scheme}` is not known here; there is {}", known.join(", ")))
    }
}

/// Reads `90s`, `30m`, `12h` or `7d`; `None` for anything else, zero included.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let seconds_per_unit = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return None,
    };
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds = digits.parse::<u32>().ok().filter(|n| *n > 0)?;
    u64::from(seconds).checked_mul(seconds_per_unit).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("90s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Some(Duration::from_secs(7 * 24 * 60 * 60)));
        for bad in ["", "7", "d", "0s", "-1s", "1w", "1é", "99999999999d"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
