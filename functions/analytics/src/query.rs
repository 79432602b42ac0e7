//! The parameters of `GET /analytics`.

use chrono::{DateTime, SecondsFormat, Utc};
use domain::{Point, Window};
use framework::{config::duration, error::Rejection};

/// Default number of points.
const DEFAULT_LIMIT: usize = 1_000;
/// Maximum number of points.
const MOST: usize = 10_000;
/// Maximum number of characters of an unknown parameter's name that a response repeats.
const SHOWN: usize = 64;

/// A parsed query.
#[derive(Debug, PartialEq, Eq)]
pub struct Query {
    /// Which points; `limit` is what was asked for.
    pub window: Window,
    /// `step` as it was written.
    step: Option<String>,
}

impl Query {
    /// Parses a query string; a rejection names the invalid parameter.
    pub fn parse(query: &str) -> Result<Self, Rejection> {
        let mut window = Window { limit: DEFAULT_LIMIT, ..Window::default() };
        let mut step = None;
        let mut seen = Vec::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if seen.contains(&name) {
                return Err(bad(&name, "is given more than once"));
            }
            match &*name {
                "from" => window.from = Some(time("from", &value)?),
                "to" => window.to = Some(time("to", &value)?),
                "limit" => window.limit = limit(&value)?,
                "before" => {
                    let below = value.parse().map_err(|_| bad("before", "must be a userCount"))?;
                    // No count is larger, and stores keep no larger numbers.
                    window.below = Some(u64::min(below, i64::MAX as u64));
                }
                "step" => {
                    let length = duration(&value)
                        .ok_or_else(|| bad("step", "must be a duration like 30s, 1m, 1h or 1d"))?;
                    window.step_s = i64::try_from(length.as_secs()).ok();
                    step = Some(value.into_owned());
                }
                _ => {
                    let shown: String = name.chars().take(SHOWN).collect();
                    return Err(bad(&shown, "is unknown; there are from, to, limit, step and before"));
                }
            }
            seen.push(name);
        }
        if let (Some(from), Some(to)) = (window.from, window.to)
            && from >= to
        {
            return Err(bad("to", "must be later than `from`"));
        }
        window.from = window.from.map(within_years);
        window.to = window.to.map(within_years);
        Ok(Self { window, step })
    }

    /// The query string of the page that ends before a point.
    pub fn before(&self, oldest: &Point) -> String {
        // What is left of the point's step is not another step.
        let step_start = self.window.step_s.and_then(|s| {
            let seconds = oldest.time.timestamp();
            DateTime::from_timestamp(seconds.checked_sub(seconds.rem_euclid(s))?, 0).map(within_years)
        });
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in [("from", self.window.from), ("to", step_start.or(self.window.to))] {
            if let Some(value) = value {
                query.append_pair(name, &value.to_rfc3339_opts(SecondsFormat::AutoSi, true));
            }
        }
        if let Some(step) = &self.step {
            query.append_pair("step", step);
        }
        query.append_pair("limit", &self.window.limit.to_string());
        if step_start.is_none() {
            query.append_pair("before", &oldest.user_count.to_string());
        }
        query.finish()
    }
}

fn time(name: &str, value: &str) -> Result<DateTime<Utc>, Rejection> {
    // A `+` that was not encoded arrives as a space.
    let time = DateTime::parse_from_rfc3339(&value.replace(' ', "+"));
    time.map(|t| t.with_timezone(&Utc))
        .map_err(|_| bad(name, "must be a time of RFC 3339 like 2022-05-14T16:57:40Z"))
}

/// RFC 3339 covers the years 0 to 9999. An offset can lead outside, where a `Link` could not express the time. No point
/// lies there, so clamp to the edge. A leap second counts as the following second.
fn within_years(time: DateTime<Utc>) -> DateTime<Utc> {
    const FIRST: i64 = -62_167_219_200;
    const LAST: i64 = 253_402_300_799;
    let (leap, nanos) = match time.timestamp_subsec_nanos() {
        nanos @ 1_000_000_000.. => (1, nanos - 1_000_000_000),
        nanos => (0, nanos),
    };
    let seconds = time.timestamp().saturating_add(leap);
    let (seconds, nanos) = match seconds {
        ..FIRST => (FIRST, 0),
        FIRST..=LAST => (seconds, nanos),
        _ => (LAST, 999_999_999),
    };
    DateTime::from_timestamp(seconds, nanos).unwrap_or(time)
}

fn limit(value: &str) -> Result<usize, Rejection> {
    let limit = value.parse().ok().filter(|n| (1..=MOST).contains(n));
    limit.ok_or_else(|| bad("limit", &format!("must be a number from 1 to {MOST}")))
}

fn bad(name: &str, why: &str) -> Rejection {
    Rejection::bad_data(format!("the parameter `{name}` {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bad_parameter_is_named() {
        for (query, name) in [
            ("from=yesterday", "`from`"),
            ("to=2022-05-14", "`to`"),
            ("from=2022-05-14T00:00:00Z&to=2022-05-14T00:00:00Z", "`to`"),
            ("limit=0", "`limit`"),
            ("limit=10001", "`limit`"),
            ("limit=-1", "`limit`"),
            ("limit=", "`limit`"),
            ("step=1", "`step`"),
            ("step=0m", "`step`"),
            ("before=x", "`before`"),
            ("limit=1&limit=2", "`limit`"),
            ("color=red", "`color`"),
        ] {
            let fault = Query::parse(query).unwrap_err().to_string();
            assert!(fault.contains(name), "{query}: {fault}");
        }
        let fault = Query::parse(&"x".repeat(60_000)).unwrap_err().to_string();
        assert!(fault.len() < 200, "{fault}");
    }

    fn point(time: &str, user_count: u64) -> Point {
        Point { id: uuid::Uuid::nil(), time: time.parse().unwrap(), user_count }
    }

    #[test]
    fn the_link_to_the_page_before_keeps_the_other_parameters() {
        let query = Query::parse("from=2022-05-14T16:57:40%2B02:00&limit=7").unwrap();
        let again = Query::parse(&query.before(&point("2022-05-14T18:00:01Z", 12))).unwrap();
        assert_eq!(again.window, Window { below: Some(12), ..query.window });
    }

    #[test]
    fn the_page_before_a_step_ends_where_the_step_begins() {
        let query = Query::parse("step=1h&before=99").unwrap();
        let again = Query::parse(&query.before(&point("2022-05-14T18:00:01Z", 12))).unwrap();
        let to = "2022-05-14T18:00:00Z".parse().ok();
        assert_eq!(again.window, Window { to, below: None, ..query.window });
    }

    #[test]
    fn every_link_is_understood_at_the_edges_of_years_steps_and_limits() {
        for asked in [
            "to=9999-12-31T23:59:59-01:00",
            "from=0000-01-01T00:00:00%2B01:00",
            "from=0000-01-01T00:00:00%2B23:59&to=9999-12-31T23:59:59.999999999-23:59",
            "to=2016-12-31T23:59:60Z",
            "to=9999-12-31T23:59:60Z",
            "step=4294967295d&to=9999-12-31T23:59:59-01:00",
            "step=1s&from=0000-01-01T00:00:00Z&limit=10000",
            "before=18446744073709551615&limit=1",
        ] {
            let query = Query::parse(asked).unwrap();
            for time in ["1970-01-01T00:00:00Z", "2022-05-14T18:00:01Z", "9999-12-31T23:59:59Z"] {
                let link = query.before(&point(time, 12));
                let again = Query::parse(&link);
                assert!(
                    again.is_ok() || query.window.from >= time.parse().ok(),
                    "{asked} -> {link}: {again:?}"
                );
            }
        }
    }

    #[test]
    fn a_zone_is_understood_also_with_a_bare_plus() {
        for text in ["2022-05-14T16:57:40+02:00", "2022-05-14T16:57:40%2B02:00", "2022-05-14T14:57:40Z"] {
            let query = Query::parse(&format!("from={text}")).unwrap();
            assert_eq!(query.window.from.unwrap().to_rfc3339(), "2022-05-14T14:57:40+00:00");
        }
    }
}
