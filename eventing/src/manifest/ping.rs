//! `PingSource`: from the clock to a function.

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::tz::TimeZone;
use serde::Deserialize;

use super::{delivery::Overrides, resource::Destination, schedule::Schedule};

/// `sources.knative.dev/v1 PingSource`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PingSource {
    /// When it ticks.
    pub schedule: Schedule,
    /// The schedule's time zone; UTC if absent.
    #[serde(default)]
    pub timezone: Zone,
    /// Media type of the data.
    pub content_type: Option<String>,
    /// The data as text.
    pub data: Option<String>,
    /// The data in Base64.
    pub data_base64: Option<String>,
    /// Where ticks go.
    pub sink: Destination,
    /// Extensions to set on each event.
    pub ce_overrides: Option<Overrides>,
}

impl PingSource {
    /// What is wrong with its data, if anything.
    pub(super) fn wrong_data(&self) -> Option<String> {
        match (&self.data, self.data_base64.as_ref().map(|data| BASE64_STANDARD.decode(data))) {
            (Some(_), Some(_)) => Some("`data` and `dataBase64` exclude each other".to_owned()),
            (_, Some(Err(error))) => Some(format!("`dataBase64` must be Base64: {error}")),
            _ => None,
        }
    }
}

/// A time zone by its IANA name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Zone(pub TimeZone);

impl Default for Zone {
    fn default() -> Self {
        Self(TimeZone::UTC)
    }
}

impl TryFrom<String> for Zone {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        TimeZone::get(&name).map(Self).map_err(|_| format!("`{name}` is no time zone like Europe/Berlin"))
    }
}
