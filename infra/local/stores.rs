//! Which stores a command works on: refuses those that mix real services with embedded defaults, and names stores
//! without their secrets.

use framework::config::{Config, ConfigError};

const LOG: &str = "LOG_URL";
const MASTER: &str = "MASTER_URL";
const VIEWS: &str = "VIEWS_URL";
/// The keys that name stores.
const URLS: [&str; 3] = [LOG, MASTER, VIEWS];

/// The URLs of all stores, complete with their secrets. The runtime alone has all of them.
#[derive(Clone)]
pub(crate) struct Stores {
    pub(crate) log_url: String,
    pub(crate) master_url: String,
    pub(crate) views_url: String,
}

impl Stores {
    /// Reads all of them; a URL that is not set means the embedded store.
    pub(crate) fn read(config: &Config) -> Result<Self, ConfigError> {
        Ok(Self {
            log_url: config.log_url()?,
            master_url: config.master_url()?,
            views_url: config.views_url()?,
        })
    }

    /// The URL that a key names.
    pub(crate) fn url(&self, key: &str) -> Option<&str> {
        match key {
            LOG => Some(&self.log_url),
            MASTER => Some(&self.master_url),
            VIEWS => Some(&self.views_url),
            _ => None,
        }
    }
}

/// What a command writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The log alone.
    Log,
    /// The log, and the stores of functions that it starts itself.
    Functions,
}

/// Refuses a command if one URL names a server and another one that the command needs is not set: the embedded default
/// would receive data that belongs to the servers. `get` looks a key up.
pub(crate) fn refuse_mix(get: impl Fn(&str) -> Option<String>, reach: Reach) -> Result<(), ConfigError> {
    let is_remote = |key: &&str| get(key).is_some_and(|url| !url.starts_with("sqlite:"));
    let Some(remote) = URLS.into_iter().find(is_remote) else { return Ok(()) };
    let needed: &[&str] = match reach {
        Reach::Log => &[LOG],
        Reach::Functions => &URLS,
    };
    match needed.iter().find(|key| get(key).is_none()) {
        Some(missing) => Err(ConfigError::new(
            missing,
            format!(
                "is not set, so this would use the embedded default although {remote} is {}; set all of {}, or send to \
                 the functions behind a gateway with --via URL",
                without_secrets(&get(remote).unwrap_or_default()),
                URLS.join(", ")
            ),
        )),
        None => Ok(()),
    }
}

/// A store's URL without user, password and query. Only its scheme, if it is unclear what is secret.
pub(crate) fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return if url.starts_with("sqlite:") { url.to_owned() } else { "…".to_owned() };
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // A password with an unencoded `/` or `?` looks like host and path.
    if path.contains('@') {
        return format!("{scheme}://…");
    }
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KAFKA: (&str, &str) = ("LOG_URL", "kafka://k:9092/user");
    const MYSQL: (&str, &str) = ("MASTER_URL", "mysql://u:p@m/db");
    const CASSANDRA: (&str, &str) = ("VIEWS_URL", "cassandra://c/lambda");

    fn refused(set: &[(&str, &str)], reach: Reach) -> Option<String> {
        let get = |key: &str| set.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned());
        refuse_mix(get, reach).err().map(|error| error.key)
    }

    #[test]
    fn servers_are_never_mixed_with_embedded_defaults() {
        let cases: &[(&[_], Reach, Option<&str>)] = &[
            (&[], Reach::Functions, None),
            (&[KAFKA, MYSQL, CASSANDRA], Reach::Functions, None),
            (&[KAFKA], Reach::Functions, Some("MASTER_URL")),
            (&[KAFKA, MYSQL], Reach::Functions, Some("VIEWS_URL")),
            (&[KAFKA, CASSANDRA], Reach::Functions, Some("MASTER_URL")),
            (&[MYSQL], Reach::Functions, Some("LOG_URL")),
            (&[CASSANDRA, MYSQL], Reach::Functions, Some("LOG_URL")),
            // An embedded store that is set explicitly is no default.
            (&[KAFKA, ("MASTER_URL", "sqlite:m.db"), CASSANDRA], Reach::Functions, None),
            (&[("LOG_URL", "sqlite:l.db")], Reach::Functions, None),
            (&[KAFKA], Reach::Log, None),
            (&[MYSQL], Reach::Log, Some("LOG_URL")),
        ];
        for (set, reach, missing) in cases {
            assert_eq!(refused(set, *reach).as_deref(), *missing, "{set:?} {reach:?}");
        }
    }

    #[test]
    fn a_store_is_named_without_its_secrets() {
        for (url, named) in [
            ("sqlite:data/log.db", "sqlite:data/log.db"),
            ("kafka://a:1,b:2/user?sasl.password=geheim", "kafka://a:1,b:2/user"),
            ("mysql://app:geheim@db:3306/lambda", "mysql://db:3306/lambda"),
            ("mysql://app:ge@heim@db/lambda", "mysql://db/lambda"),
            ("mysql://app:geheim/x@db/lambda", "mysql://…"),
            ("mysql://app:geheim?x@db/lambda", "mysql://…"),
            ("kafka://a/user?ssl.key.password=x@geheim", "kafka://…"),
            ("geheim", "…"),
        ] {
            assert_eq!(without_secrets(url), named, "{url}");
        }
    }
}
