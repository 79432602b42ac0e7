//! Configuration: the environment, then the file that `CONFIG_FILE` names. Each function reads the keys it uses alone.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

pub use connect::{ConfigError, duration};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// Exit status for an invalid configuration (`EX_USAGE` of sysexits).
pub const EXIT_CONFIG: u8 = 64;

/// What all functions share, and a way to the keys of one function's own. Stores and secrets are read when a function
/// asks for them: a missing or wrong key of another function's store is no fault of this one.
pub struct Config {
    /// `PORT`: the HTTP port.
    pub port: u16,
    /// `LOG_LEVEL`: a `tracing` filter.
    pub log_level: String,
    /// `METRICS_PORT`: the port of Prometheus metrics, if enabled.
    pub metrics_port: Option<u16>,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: where traces are sent, if enabled.
    pub otlp_endpoint: Option<String>,
    get: Box<Get>,
    data: PathBuf,
}

/// Finds the value of a key.
type Get = dyn Fn(&str) -> Option<String> + Send + Sync;

/// The folder of everything embedded, unless told otherwise.
pub const DATA: &str = "data";

/// Maximum length of a key whose name an error shows.
const LONGEST_KEY: usize = 64;

/// Default retention of the speed layer's history.
const SPEED_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Config {
    /// Reads keys through `env`; a key that it does not know is looked up in the configuration file.
    /// What is embedded by default lies in the folder `data`.
    ///
    /// # Errors
    /// The file, or a key that all functions share, cannot be used.
    pub fn read(
        env: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
        data: &Path,
    ) -> Result<Self, ConfigError> {
        Self::of(lookup(env)?, data)
    }

    /// The same of keys that `get` finds.
    ///
    /// # Errors
    /// A key that all functions share cannot be used.
    pub fn of(
        get: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
        data: &Path,
    ) -> Result<Self, ConfigError> {
        let or = |key: &str, default: &str| get(key).unwrap_or_else(|| default.to_owned());
        Ok(Self {
            port: port("PORT", &or("PORT", "8080"))?,
            log_level: or("LOG_LEVEL", "info"),
            metrics_port: get("METRICS_PORT").map(|p| port("METRICS_PORT", &p)).transpose()?,
            otlp_endpoint: get("OTEL_EXPORTER_OTLP_ENDPOINT"),
            get: Box::new(get),
            data: data.to_owned(),
        })
    }

    /// `LOG_URL`: `sqlite:PATH` or `kafka://…`.
    ///
    /// # Errors
    /// It names a key that is not set.
    pub fn log_url(&self) -> Result<String, ConfigError> {
        self.url("LOG_URL", "log.db")
    }

    /// `MASTER_URL`: `sqlite:PATH` or `mysql://…`.
    ///
    /// # Errors
    /// It names a key that is not set.
    pub fn master_url(&self) -> Result<String, ConfigError> {
        self.url("MASTER_URL", "master.db")
    }

    /// `VIEWS_URL`: `sqlite:PATH` or `cassandra://…`.
    ///
    /// # Errors
    /// It names a key that is not set.
    pub fn views_url(&self) -> Result<String, ConfigError> {
        self.url("VIEWS_URL", "views.db")
    }

    /// `SPEED_RETENTION`: how long the speed layer keeps its history; the batch layer serves what is older.
    ///
    /// # Errors
    /// It is not a duration.
    pub fn speed_retention(&self) -> Result<Duration, ConfigError> {
        const KEY: &str = "SPEED_RETENTION";
        let Some(text) = self.value(KEY) else { return Ok(SPEED_RETENTION) };
        duration(&text)
            .ok_or_else(|| ConfigError::new(KEY, format!("`{text}` is no duration like 7d, 12h, 30m or 90s")))
    }

    /// `EVENT_TOKEN`, or what the file `EVENT_TOKEN_FILE` holds: the secret that internal functions want of whoever
    /// sends them events.
    ///
    /// # Errors
    /// The file cannot be read, or the secret is empty or not visible ASCII.
    pub fn event_token(&self) -> Result<Option<String>, ConfigError> {
        event_token(&self.get)
    }

    /// The value of any key as it was given; `None` where it is not set.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<String> {
        (self.get)(key)
    }

    fn url(&self, key: &str, file: &str) -> Result<String, ConfigError> {
        match self.value(key) {
            Some(url) => expand(key, &url, &self.get),
            None => Ok(format!("sqlite:{}", self.data.join(file).display())),
        }
    }
}

/// The event token. An unreadable or empty file is an error: ignoring it would disable the check.
fn event_token(get: impl Fn(&str) -> Option<String>) -> Result<Option<String>, ConfigError> {
    const FILE: &str = "EVENT_TOKEN_FILE";
    let (key, token) = match (get("EVENT_TOKEN"), get(FILE)) {
        (Some(_), Some(_)) => {
            return Err(ConfigError::new(FILE, "is set beside EVENT_TOKEN; set one of them"));
        }
        (Some(token), None) => ("EVENT_TOKEN", token),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(&path);
            (FILE, text.map_err(|e| ConfigError::new(FILE, format!("{path} cannot be read: {e}")))?)
        }
        (None, None) => return Ok(None),
    };
    // Editors and `echo` end a file with a newline.
    let token = token.trim_end_matches(['\r', '\n']);
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(ConfigError::new(key, "must be visible ASCII characters without spaces, at least one"));
    }
    Ok(Some(token.to_owned()))
}

/// Looks up keys. The environment wins over the file that it names; an empty value counts as missing.
pub fn lookup(env: impl Fn(&str) -> Option<String>) -> Result<impl Fn(&str) -> Option<String>, ConfigError> {
    let file = read_file(env("CONFIG_FILE").as_deref())?;
    Ok(move |key: &str| env(key).or_else(|| file.get(key).cloned()).filter(|value| !value.is_empty()))
}

/// Replaces each `$(KEY)` in a URL by the percent-encoded value of that key, so that URLs can be public while passwords
/// are not. The notation is Kubernetes' own. File paths are not encoded.
fn expand(key: &str, url: &str, get: impl Fn(&str) -> Option<String>) -> Result<String, ConfigError> {
    if url.starts_with("sqlite:") {
        return Ok(url.to_owned());
    }
    let mut parts = url.split("$(");
    let mut expanded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) =
            part.split_once(')').ok_or_else(|| ConfigError::new(key, "a `$(` has no `)` behind it"))?;
        let value = get(name).ok_or_else(|| match is_key(name) {
            true => ConfigError::new(key, format!("`$({name})` stands there, `{name}` is not set")),
            // It may be a part of a password.
            false => ConfigError::new(key, "what stands in a `$()` is no key; a `$` of a password is `%24`"),
        })?;
        expanded.extend(utf8_percent_encode(&value, NON_ALPHANUMERIC));
        expanded.push_str(rest);
    }
    Ok(expanded)
}

/// Whether a name is written like a key.
fn is_key(name: &str) -> bool {
    (1..=LONGEST_KEY).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

fn port(key: &str, text: &str) -> Result<u16, ConfigError> {
    text.parse().map_err(|_| ConfigError::new(key, format!("`{text}` is no port between 0 and 65535")))
}

/// A file that was named must exist; the default one may be missing.
fn read_file(named: Option<&str>) -> Result<HashMap<String, String>, ConfigError> {
    let path = named.unwrap_or("app.env");
    if named.is_none() && !Path::new(path).exists() {
        return Ok(HashMap::new());
    }
    let fault = |e: dotenvy::Error| match e {
        // The line may contain a secret.
        dotenvy::Error::LineParse(_, at) => ConfigError::new(
            "CONFIG_FILE",
            format!("{path} has a line that is not KEY=VALUE (at its byte {at})"),
        ),
        other => ConfigError::new("CONFIG_FILE", format!("{path}: {other}")),
    };
    dotenvy::from_path_iter(path).map_err(fault)?.collect::<Result<_, _>>().map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let pairs: HashMap<String, String> =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Config::read(move |key: &str| pairs.get(key).cloned(), Path::new(DATA))
    }

    #[test]
    fn nothing_configured_means_embedded() {
        let config = read(&[]).unwrap();
        assert_eq!((config.port, config.log_url().unwrap().as_str()), (8080, "sqlite:data/log.db"));
    }

    #[test]
    fn a_bad_value_names_its_key() {
        for (key, value) in [("PORT", "80a"), ("METRICS_PORT", "-1"), ("CONFIG_FILE", "/does/not/exist")] {
            assert_eq!(read(&[(key, value)]).err().unwrap().key, key);
        }
        let retention = read(&[("SPEED_RETENTION", "7")]).unwrap().speed_retention();
        assert_eq!(retention.err().unwrap().key, "SPEED_RETENTION");
    }

    #[test]
    fn a_key_that_nobody_asks_for_does_no_harm() {
        let wrong = [
            ("LOG_URL", "kafka://$(NOWHERE)"),
            ("VIEWS_URL", "cassandra://$(NOWHERE"),
            ("SPEED_RETENTION", "7"),
            ("EVENT_TOKEN_FILE", "/does/not/exist"),
        ];
        let config = read(&wrong).unwrap();
        assert_eq!(config.master_url().unwrap(), "sqlite:data/master.db");
        assert_eq!(config.log_url().err().unwrap().key, "LOG_URL");
        assert_eq!(config.views_url().err().unwrap().key, "VIEWS_URL");
        assert_eq!(config.event_token().err().unwrap().key, "EVENT_TOKEN_FILE");
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.env");
        std::fs::write(&file, "PORT=1234\nLOG_LEVEL=debug # loud\n").unwrap();
        let config = read(&[("CONFIG_FILE", file.to_str().unwrap()), ("PORT", "99")]).unwrap();
        assert_eq!((config.port, config.log_level.as_str()), (99, "debug"));
    }

    #[test]
    fn a_url_takes_its_password_from_another_key() {
        let url = ("MASTER_URL", "mysql://app:$(MYSQL_PASSWORD)@db/$(DB)");
        let config = read(&[url, ("MYSQL_PASSWORD", "a@b/c$(X)"), ("DB", "lambda")]).unwrap();
        assert_eq!(config.master_url().unwrap(), "mysql://app:a%40b%2Fc%24%28X%29@db/lambda");
        for bad in ["mysql://app:$(MYSQL_PASSWORD@db", "mysql://app:$(NOWHERE)@db"] {
            let config = read(&[("MASTER_URL", bad)]).unwrap();
            assert_eq!(config.master_url().err().unwrap().key, "MASTER_URL");
        }
        let config = read(&[("MASTER_URL", "mysql://app:pass$(word)@db/lambda")]).unwrap();
        let error = config.master_url().unwrap_err().to_string();
        assert!(!error.contains("word)") && error.contains("%24"), "{error}");
        let config = read(&[("LOG_URL", "sqlite:$(odd)/log.db")]).unwrap();
        assert_eq!(config.log_url().unwrap(), "sqlite:$(odd)/log.db");
    }

    #[test]
    fn the_secret_of_events_comes_from_a_key_or_a_file_and_is_never_empty_by_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name).to_str().unwrap().to_owned()
        };
        let (good, empty, gone) = (file("good", "s3cret\n"), file("empty", "\n"), dir.path().join("gone"));
        let token =
            |pairs: &[(&str, &str)]| read(pairs).and_then(|config| config.event_token()).map_err(|e| e.key);
        assert_eq!(token(&[]), Ok(None));
        assert_eq!(token(&[("EVENT_TOKEN", "")]), Ok(None));
        assert_eq!(token(&[("EVENT_TOKEN", "s3cret")]), Ok(Some("s3cret".into())));
        assert_eq!(token(&[("EVENT_TOKEN_FILE", &good)]), Ok(Some("s3cret".into())));
        assert_eq!(token(&[("EVENT_TOKEN", "a b")]), Err("EVENT_TOKEN".into()));
        for bad in [&empty, gone.to_str().unwrap()] {
            assert_eq!(token(&[("EVENT_TOKEN_FILE", bad)]), Err("EVENT_TOKEN_FILE".into()));
        }
        assert!(token(&[("EVENT_TOKEN_FILE", &good), ("EVENT_TOKEN", "x")]).is_err());
    }
}
