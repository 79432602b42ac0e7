//! The forwarder's settings, in addition to those of every function.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use framework::config::{self, Config, ConfigError, DATA};
use http::{
    HeaderValue, Uri,
    uri::{Authority, Scheme},
};

/// The configuration of a forwarder.
pub struct Settings {
    /// `PORT`, `LOG_LEVEL` and so on.
    pub config: Config,
    /// `LOG_URL`: the only store that the forwarder uses.
    pub log_url: String,
    /// The gateway through which functions are called.
    pub gateway: GatewaySettings,
}

/// A gateway's address, and the credentials for it.
#[derive(Clone)]
pub struct GatewaySettings {
    /// Host and port.
    pub(crate) authority: Authority,
    /// The path before `/function/NAME`, without a trailing `/`.
    pub(crate) prefix: String,
    /// The value of `Authorization`, if a user is configured.
    pub(crate) authorization: Option<HeaderValue>,
    /// The token that authenticates the forwarder to functions, if they require one.
    pub(crate) event_token: Option<HeaderValue>,
}

impl Settings {
    /// Reads keys through `env`, and from the file that it names. `GATEWAY_URL` is required. `GATEWAY_USER` with
    /// `GATEWAY_PASSWORD`, and `EVENT_TOKEN`, are optional; the same keys with the suffix `_FILE` name files to read
    /// them from.
    pub fn read(env: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Result<Self, ConfigError> {
        let get = config::lookup(env)?;
        let gateway = GatewaySettings::read(&get)?;
        let config = Config::of(get, Path::new(DATA))?;
        Ok(Self { gateway, log_url: config.log_url()?, config })
    }
}

impl GatewaySettings {
    fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        const KEY: &str = "GATEWAY_URL";
        let url = get(KEY).ok_or_else(|| {
            ConfigError::new(KEY, "is missing; give the gateway's URL, like http://gateway.openfaas:8080")
        })?;
        let uri: Uri = url.parse().map_err(|e| ConfigError::new(KEY, format!("this is no URL: {e}")))?;
        let authority = uri.authority().filter(|_| uri.scheme() == Some(&Scheme::HTTP)).ok_or_else(|| {
            ConfigError::new(KEY, "only an http:// URL is understood, as of a gateway in the same cluster")
        })?;
        if authority.as_str().contains('@') {
            return Err(ConfigError::new(KEY, "give the user as GATEWAY_USER and GATEWAY_PASSWORD instead"));
        }
        Ok(Self {
            authority: authority.clone(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            event_token: event_token(&get)?,
            authorization: authorization(get)?,
        })
    }
}

fn event_token(get: impl Fn(&str) -> Option<String>) -> Result<Option<HeaderValue>, ConfigError> {
    let Some(token) = secret(get, "EVENT_TOKEN")? else { return Ok(None) };
    // The error of the conversion does not show the token.
    let mut value = HeaderValue::try_from(token).map_err(|e| ConfigError::new("EVENT_TOKEN", e))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn authorization(get: impl Fn(&str) -> Option<String>) -> Result<Option<HeaderValue>, ConfigError> {
    match (secret(&get, "GATEWAY_USER")?, secret(&get, "GATEWAY_PASSWORD")?) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(ConfigError::new("GATEWAY_PASSWORD", "is missing beside GATEWAY_USER")),
        (None, Some(_)) => Err(ConfigError::new("GATEWAY_USER", "is missing beside GATEWAY_PASSWORD")),
        (Some(user), Some(password)) => {
            let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
            let mut value = HeaderValue::try_from(basic).map_err(|e| ConfigError::new("GATEWAY_USER", e))?;
            value.set_sensitive(true);
            Ok(Some(value))
        }
    }
}

/// Returns a key's value, or the first line of the file that `KEY_FILE` names. An empty secret is an error.
fn secret(get: impl Fn(&str) -> Option<String>, key: &str) -> Result<Option<String>, ConfigError> {
    let twin = format!("{key}_FILE");
    let (named, secret) = match (get(key), get(&twin)) {
        (Some(value), _) => (key, value),
        (None, Some(file)) => {
            let text =
                fs::read_to_string(&file).map_err(|e| ConfigError::new(&twin, unreadable(&file, &e)))?;
            (twin.as_str(), text.lines().next().unwrap_or_default().to_owned())
        }
        (None, None) => return Ok(None),
    };
    match secret.is_empty() {
        true => Err(ConfigError::new(named, "is empty")),
        false => Ok(Some(secret)),
    }
}

/// Returns an error text that names the forwarder's uid, because secret files are often readable by one user only.
fn unreadable(file: &str, error: &io::Error) -> String {
    let uid = fs::metadata("/proc/self").map(|process| process.uid());
    match (error.kind(), uid) {
        (io::ErrorKind::PermissionDenied, Ok(uid)) => {
            format!("{file}: {error}; the forwarder runs as uid {uid}, which must be able to read it")
        }
        _ => format!("{file}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let pairs: Vec<_> =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Settings::read(move |key| {
            pairs.iter().find(|(k, _)| k == key).map(|(_, v): &(String, String)| v.clone())
        })
    }

    #[test]
    fn a_gateway_may_lie_behind_a_prefix() {
        let gateway = read(&[("GATEWAY_URL", "http://host:8080/faas/")]).unwrap().gateway;
        assert_eq!((gateway.authority.as_str(), gateway.prefix.as_str()), ("host:8080", "/faas"));
        assert_eq!(gateway.authorization, None);
    }

    #[test]
    fn the_gateways_user_may_stand_in_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("basic-auth-password");
        std::fs::write(&file, "secret\n").unwrap();
        let gateway = read(&[
            ("GATEWAY_URL", "http://host"),
            ("GATEWAY_USER", "admin"),
            ("GATEWAY_PASSWORD_FILE", file.to_str().unwrap()),
        ]);
        assert_eq!(gateway.unwrap().gateway.authorization.unwrap(), "Basic YWRtaW46c2VjcmV0");
    }

    #[test]
    fn a_file_that_another_user_may_read_is_named_with_who_may_not() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let uid = std::fs::metadata("/proc/self").unwrap().uid();
        let said = unreadable("/run/secrets/event-token", &denied);
        assert!(said.contains("/run/secrets/event-token") && said.contains(&format!("uid {uid}")), "{said}");
        assert!(!said.contains('\n'));
    }

    #[test]
    fn the_event_token_may_stand_in_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "token\n").unwrap();
        let named = ("EVENT_TOKEN_FILE", file.path().to_str().unwrap());
        let gateway = read(&[("GATEWAY_URL", "http://host"), named]).unwrap().gateway;
        let token = gateway.event_token.unwrap();
        assert!(token == "token" && token.is_sensitive());
        std::fs::write(file.path(), "\n").unwrap();
        assert_eq!(read(&[("GATEWAY_URL", "http://host"), named]).err().unwrap().key, "EVENT_TOKEN_FILE");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let url = ("GATEWAY_URL", "http://host:8080");
        for (pairs, key) in [
            (&[] as &[_], "GATEWAY_URL"),
            (&[("GATEWAY_URL", "gateway:8080")], "GATEWAY_URL"),
            (&[("GATEWAY_URL", "https://gateway")], "GATEWAY_URL"),
            (&[("GATEWAY_URL", "http://a:b@gateway")], "GATEWAY_URL"),
            (&[url, ("GATEWAY_USER", "admin")], "GATEWAY_PASSWORD"),
            (&[url, ("GATEWAY_PASSWORD", "secret")], "GATEWAY_USER"),
            (&[url, ("GATEWAY_USER_FILE", "/does/not/exist")], "GATEWAY_USER_FILE"),
            (&[url, ("EVENT_TOKEN", "a\nb")], "EVENT_TOKEN"),
            (&[url, ("EVENT_TOKEN_FILE", "/does/not/exist")], "EVENT_TOKEN_FILE"),
            (&[url, ("PORT", "x")], "PORT"),
        ] {
            assert_eq!(read(pairs).err().unwrap().key, key, "{pairs:?}");
        }
    }
}
