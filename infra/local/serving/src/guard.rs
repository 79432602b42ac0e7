//! Who may use the gateway. A browser sends requests to this machine for any page that it shows, and a name of that page's
//! owner may resolve to a loopback address (DNS rebinding). So a request must name this machine, and one that changes
//! something must not come from a page of another site.

use std::{collections::BTreeSet, net::IpAddr};

use http::{HeaderMap, Method, Uri, header::ORIGIN};

/// The rules of a gateway.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    allowed_hosts: BTreeSet<String>,
    internal: BTreeSet<String>,
}

impl Guard {
    /// Besides loopback addresses, `localhost` and its subdomains, requests may name `allowed_hosts`. The functions
    /// `internal` are reachable only through a gateway that listens on a loopback address.
    #[must_use]
    pub fn new(
        allowed_hosts: impl IntoIterator<Item = String>,
        internal: impl IntoIterator<Item = String>,
    ) -> Self {
        let allowed_hosts = allowed_hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { allowed_hosts, internal: internal.into_iter().collect() }
    }

    /// Checks a request. The error is the detail of a 403.
    pub(crate) fn check(&self, method: &Method, host: &str, headers: &HeaderMap) -> Result<(), String> {
        if !self.is_here(host) {
            return Err(format!(
                "`{host}` is not a name of this machine; use localhost, or start the system with `--allow-host {}`",
                name(host)
            ));
        }
        if method.is_safe() {
            return Ok(());
        }
        let is_cross_site = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
        let has_other_origin = headers.get_all(ORIGIN).iter().any(|origin| {
            let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
            !origin.as_ref().and_then(Uri::authority).is_some_and(|origin| self.is_here(origin.as_str()))
        });
        if is_cross_site || has_other_origin {
            return Err("a page of another site may change nothing here".to_owned());
        }
        Ok(())
    }

    pub(crate) fn is_internal(&self, function: &str) -> bool {
        self.internal.contains(function)
    }

    fn is_here(&self, host: &str) -> bool {
        let host = name(host).to_ascii_lowercase();
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        address.is_ok_and(|address| address.is_loopback())
            || host == "localhost"
            || host.ends_with(".localhost")
            || self.allowed_hosts.contains(&host)
    }
}

/// A host without its port and without the dot of a fully qualified name.
pub(crate) fn name(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        // In an IPv6 address every colon is inside of brackets.
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, host: &str, headers: &[(&'static str, &str)]) -> Result<(), String> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let headers: HeaderMap = headers.collect();
        Guard::new(["Lambda.test".to_owned()], []).check(&method, host, &headers)
    }

    #[test]
    fn a_request_must_name_this_machine() {
        for host in [
            "127.0.0.1",
            "127.1.2.3:8080",
            "[::1]",
            "[::1]:8080",
            "localhost",
            "LOCALHOST.:80",
            "a.b.localhost:1",
            "lambda.test",
            "lambda.test:8080",
        ] {
            assert_eq!(check(Method::GET, host, &[]), Ok(()), "{host}");
        }
        for host in [
            "example.org",
            "example.org:8080",
            "10.0.0.1",
            "0.0.0.0",
            "[::2]:80",
            "localhost.example.org",
            "notlocalhost",
            "a.lambda.test",
            "",
        ] {
            assert!(check(Method::GET, host, &[]).is_err(), "{host}");
        }
    }

    #[test]
    fn a_page_of_another_site_changes_nothing() {
        for (header, value, may_post) in [
            ("origin", "http://localhost:8080", true),
            ("origin", "http://127.0.0.1:3000", true),
            ("origin", "https://lambda.test", true),
            ("origin", "https://example.org", false),
            ("origin", "null", false),
            ("sec-fetch-site", "same-origin", true),
            ("sec-fetch-site", "none", true),
            ("sec-fetch-site", "cross-site", false),
        ] {
            assert_eq!(check(Method::POST, "localhost", &[(header, value)]).is_ok(), may_post, "{value}");
            assert_eq!(check(Method::GET, "localhost", &[(header, value)]), Ok(()), "{value}");
        }
    }
}
