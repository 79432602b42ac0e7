//! Parses `cassandra://user:password@host:port[,host:port]/keyspace?key=value`. Errors show none of it.

use std::{ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use connect::{ConfigError, duration};
use percent_encoding::percent_decode_str;

/// Where Cassandra listens unless told otherwise.
const PORT: u16 = 9042;
/// How long a request may take unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest name that a keyspace may have.
const KEYSPACE: usize = 48;
/// How many shards there may be.
const SHARDS: RangeInclusive<i32> = 1..=4_096;

/// What the URL says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) user: Option<(String, String)>,
    /// With ports.
    pub(super) hosts: Vec<String>,
    pub(super) keyspace: String,
    /// Shards that the keyspace must have.
    pub(super) shards: Option<i32>,
    pub(super) replication_factor: u32,
    pub(super) datacenter: Option<String>,
    pub(super) scope: Scope,
    pub(super) timeout: Duration,
    pub(super) tls: Option<Tls>,
}

/// Whose majority decides.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// That of all nodes.
    Cluster,
    /// That of one datacenter, through which everybody then counts.
    Datacenter(String),
}

/// How connections are made safe.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tls {
    /// A PEM file with the authorities to trust; the system's otherwise.
    pub(super) ca: Option<PathBuf>,
    /// Whether a certificate must name the node's address.
    pub(super) verify_host: bool,
}

impl Url {
    pub(super) fn parse(url: &str) -> Result<Self, ConfigError> {
        let shape = || wrong("must be like cassandra://user:password@host:port/keyspace");
        let rest = url.strip_prefix("cassandra://").ok_or_else(shape)?;
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, keyspace) = rest.split_once('/').ok_or_else(shape)?;
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (Some(credentials(user).ok_or_else(shape)?), hosts),
            None => (None, authority),
        };
        let hosts: Option<Vec<_>> = hosts.split(',').map(host).collect();
        if !is_keyspace(keyspace) {
            return Err(wrong(format!(
                "must name a keyspace of at most {KEYSPACE} characters a-z, 0-9 and _, a letter first"
            )));
        }
        let parameters = Parameters::read(parameters)?;
        Ok(Self {
            user,
            hosts: hosts.ok_or_else(|| wrong("must name hosts like host:port, with commas between them"))?,
            keyspace: keyspace.to_owned(),
            shards: parameters.shards,
            replication_factor: parameters.replication_factor.unwrap_or(1),
            scope: parameters.scope()?,
            timeout: parameters.timeout.unwrap_or(TIMEOUT),
            tls: parameters.tls()?,
            datacenter: parameters.datacenter,
        })
    }
}

/// What stands behind the question mark.
#[derive(Default)]
struct Parameters {
    shards: Option<i32>,
    replication_factor: Option<u32>,
    datacenter: Option<String>,
    local: bool,
    timeout: Option<Duration>,
    tls: bool,
    tls_ca: Option<PathBuf>,
    tls_verify_host: Option<bool>,
}

impl Parameters {
    fn read(parameters: &str) -> Result<Self, ConfigError> {
        let mut read = Self::default();
        for (name, value) in url::form_urlencoded::parse(parameters.as_bytes()) {
            match &*name {
                "shards" => {
                    let shards = value.parse().ok().filter(|n| SHARDS.contains(n));
                    read.shards = Some(shards.ok_or_else(|| bad(&name, "a number from 1 to 4096"))?);
                }
                "replication_factor" => {
                    let factor = value.parse().ok().filter(|n| (1..=100).contains(n));
                    read.replication_factor =
                        Some(factor.ok_or_else(|| bad(&name, "a number from 1 to 100"))?);
                }
                "datacenter" => {
                    let letters = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
                    if value.is_empty() || !value.chars().all(letters) {
                        return Err(bad(&name, "a name of letters, digits, _, - and ."));
                    }
                    read.datacenter = Some(value.into_owned());
                }
                "consistency" => match &*value {
                    "quorum" => read.local = false,
                    "local_quorum" => read.local = true,
                    _ => return Err(bad(&name, "quorum or local_quorum")),
                },
                "timeout" => {
                    let timeout = duration(&value).ok_or_else(|| bad(&name, "a duration like 10s"))?;
                    read.timeout = Some(timeout);
                }
                "tls" => read.tls = truth(&name, &value)?,
                "tls.ca" => read.tls_ca = Some(PathBuf::from(&*value)),
                "tls.verify_host" => read.tls_verify_host = Some(truth(&name, &value)?),
                _ => {
                    // Its name is not shown: of a malformed URL it may be a part of a password.
                    return Err(wrong(
                        "a parameter is unknown; there are shards, replication_factor, datacenter, consistency, \
                         timeout, tls, tls.ca and tls.verify_host",
                    ));
                }
            }
        }
        Ok(read)
    }

    fn scope(&self) -> Result<Scope, ConfigError> {
        match (&self.datacenter, self.local) {
            (_, false) => Ok(Scope::Cluster),
            (Some(datacenter), true) => Ok(Scope::Datacenter(datacenter.clone())),
            (None, true) => Err(wrong("`consistency=local_quorum` needs the parameter `datacenter`")),
        }
    }

    fn tls(&self) -> Result<Option<Tls>, ConfigError> {
        if self.tls {
            let verify_host = self.tls_verify_host.unwrap_or(true);
            return Ok(Some(Tls { ca: self.tls_ca.clone(), verify_host }));
        }
        // Settings without effect would suggest safety that is not there.
        match (&self.tls_ca, self.tls_verify_host) {
            (None, None) => Ok(None),
            _ => Err(wrong("`tls.ca` and `tls.verify_host` need `tls=true`")),
        }
    }
}

fn wrong(why: impl std::fmt::Display) -> ConfigError {
    ConfigError::new("VIEWS_URL", why)
}

fn bad(name: &str, must: &str) -> ConfigError {
    wrong(format!("the parameter `{name}` must be {must}"))
}

fn truth(name: &str, value: &str) -> Result<bool, ConfigError> {
    bool::from_str(value).map_err(|_| bad(name, "true or false"))
}

fn credentials(text: &str) -> Option<(String, String)> {
    let (user, password) = text.split_once(':')?;
    let decode = |text| percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned());
    Some((decode(user).filter(|user| !user.is_empty())?, decode(password)?))
}

/// A host with its port.
fn host(text: &str) -> Option<String> {
    let (name, port) = match text.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()?),
        _ => (text, PORT),
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let good = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)),
    };
    good.then(|| format!("{name}:{port}"))
}

fn is_keyspace(name: &str) -> bool {
    name.len() <= KEYSPACE
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_who_where_and_how() {
        let url = Url::parse(
            "cassandra://app:a%40b%2F%3A@one:9043,[::1],two/views?shards=64&replication_factor=3&datacenter=dc1\
             &consistency=local_quorum&timeout=5s&tls=true&tls.ca=/etc/ca.pem&tls.verify_host=false",
        );
        let expected = Url {
            user: Some(("app".into(), "a@b/:".into())),
            hosts: vec!["one:9043".into(), "[::1]:9042".into(), "two:9042".into()],
            keyspace: "views".into(),
            shards: Some(64),
            replication_factor: 3,
            datacenter: Some("dc1".into()),
            scope: Scope::Datacenter("dc1".into()),
            timeout: Duration::from_secs(5),
            tls: Some(Tls { ca: Some("/etc/ca.pem".into()), verify_host: false }),
        };
        assert_eq!(url.unwrap(), expected);
        let plain = Url::parse("cassandra://127.0.0.1/v").unwrap();
        assert_eq!((plain.user, plain.tls, plain.shards), (None, None, None));
        assert_eq!((plain.scope, plain.timeout), (Scope::Cluster, TIMEOUT));
    }

    #[test]
    fn a_bad_url_is_named_and_its_password_is_not_shown() {
        for (rest, named) in [
            ("h:9042", "keyspace"),
            ("h:9042/", "keyspace"),
            ("h:9042/Views", "keyspace"),
            ("h:9042/a\"b", "keyspace"),
            ("h:port/v", "host:port"),
            (":9042/v", "host:port"),
            ("h,/v", "host:port"),
            ("h/v?shards=0", "`shards`"),
            ("h/v?shards=x", "`shards`"),
            ("h/v?replication_factor=0", "`replication_factor`"),
            ("h/v?datacenter=a'b", "`datacenter`"),
            ("h/v?consistency=one", "`consistency`"),
            ("h/v?consistency=local_quorum", "`datacenter`"),
            ("h/v?timeout=10", "`timeout`"),
            ("h/v?tls=yes", "`tls`"),
            ("h/v?tls.ca=/a", "`tls=true`"),
            ("h/v?tls=true&tls.verify_host=1", "`tls.verify_host`"),
            ("h/v?colour=red", "a parameter is unknown"),
            ("h/v?x@h:1/s3cret", "a parameter is unknown"),
        ] {
            let error = Url::parse(&format!("cassandra://u:s3cret@{rest}")).unwrap_err();
            assert_eq!(error.key, "VIEWS_URL");
            assert!(error.why.contains(named) && !error.why.contains("s3cret"), "{rest}: {error}");
        }
        for bad in ["cassandra:h/v", "cassandra://u@h/v", "cassandra://:p@h/v"] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_url_that_is_mistyped_anywhere_never_shows_its_password() {
        let url = "cassandra://app:Mark3r@one:9043,two/views?shards=64&timeout=5s&tls=true&tls.ca=/a";
        for at in 0..=url.len() {
            let (head, tail) = url.split_at(at);
            let rest = tail.get(1..).unwrap_or_default();
            for typed in
                ["", "/", "?", "@", "&", "=", ",", ":", "%", "#", " ", "&Mark3r", "?Mark3r=1&", "Mark3r@"]
            {
                for url in [format!("{head}{typed}{tail}"), format!("{head}{typed}{rest}")] {
                    if let Err(error) = Url::parse(&url) {
                        assert!(!error.to_string().contains("Mark3r"), "{url}: {error}");
                    }
                }
            }
        }
    }
}
