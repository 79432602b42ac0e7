//! Functions behind a gateway, to which a replay may send instead of starting functions of its own.
//! Does not retry; the caller decides what a failure means.

use std::{str::FromStr, time::Duration};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use eventing::sink::{Sink, SinkError, from_function};
use framework::router::EVENT_TOKEN;
use http::{HeaderValue, Request, Response};
use reqwest::{Client, Url, redirect::Policy};

use crate::stores::without_secrets;

/// Placeholder for a function's name in a URL.
const FUNCTION: &str = "{function}";
/// Time limit for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of bytes read of a response.
const ANSWER_LIMIT: usize = 64 * 1024;

/// Where functions are called: a gateway, to which `/function/NAME` is added, or a URL with `{function}` in it, as
/// Knative's are (`http://{function}.default.example.com`). May hold `user:password@`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Via(String);

impl FromStr for Via {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const WANTED: &str = "give an http:// URL without a query; a tunnel leads to a gateway behind TLS";
        if text.strip_prefix("http://").is_none_or(|rest| rest.trim_end_matches('/').is_empty()) {
            return Err(WANTED.to_owned());
        }
        let template = match text.contains(FUNCTION) {
            true => text.to_owned(),
            false => format!("{}/function/{FUNCTION}", text.trim_end_matches('/')),
        };
        let via = Self(template);
        match via.url("f") {
            Ok(url) if url.scheme() == "http" && url.has_host() && url.query().is_none() => Ok(via),
            Ok(_) => {
                Err("give an http:// URL without a query; a tunnel leads to a gateway behind TLS".into())
            }
            Err(error) => Err(format!("this is no URL: {error}")),
        }
    }
}

impl std::fmt::Display for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&without_secrets(&self.0))
    }
}

impl Via {
    fn url(&self, function: &str) -> Result<Url, String> {
        let url = Url::parse(&self.0.replace(FUNCTION, function));
        url.map_err(|error| error.to_string())
    }
}

/// Sends to functions behind a gateway.
pub(crate) struct ViaSink {
    via: Via,
    client: Client,
    /// The token that internal functions require of whoever sends them events.
    event_token: Option<HeaderValue>,
}

impl ViaSink {
    /// Connects on first use. Sends `event_token` if there is one.
    pub(crate) fn new(via: Via, event_token: Option<&str>) -> anyhow::Result<Self> {
        let mut event_token = event_token.map(HeaderValue::try_from).transpose()?;
        event_token.iter_mut().for_each(|token| token.set_sensitive(true));
        let client =
            Client::builder().connect_timeout(CONNECT_TIMEOUT).redirect(Policy::none()).no_proxy().build()?;
        Ok(Self { via, client, event_token })
    }

    async fn exchange(&self, url: Url, request: Request<Bytes>) -> Result<Response<Bytes>, reqwest::Error> {
        let (head, body) = request.into_parts();
        let sending = self.client.request(head.method, url).headers(head.headers).body(body).send();
        let mut answer = sending.await?;
        let mut body = BytesMut::new();
        while body.len() < ANSWER_LIMIT
            && let Some(chunk) = answer.chunk().await?
        {
            body.extend_from_slice(&chunk[..chunk.len().min(ANSWER_LIMIT - body.len())]);
        }
        Ok(Response::<reqwest::Body>::from(answer).map(|_| body.freeze()))
    }
}

#[async_trait]
impl Sink for ViaSink {
    async fn send(&self, function: &str, mut request: Request<Bytes>) -> Result<Response<Bytes>, SinkError> {
        // A dead letter names its function; it must not name another host.
        if !function.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') || function.is_empty() {
            return Err(SinkError(format!("`{function}` is no name of a function")));
        }
        let url = self.via.url(function).map_err(SinkError)?;
        if let Some(token) = &self.event_token {
            request.headers_mut().insert(EVENT_TOKEN, token.clone());
        }
        // The URL may hold a password.
        let answer = self.exchange(url, request).await;
        let answer = answer.map_err(|error| SinkError(causes(&error.without_url())))?;
        from_function(answer, "the user and password of --via, and EVENT_TOKEN")
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    framework::error::Error::unavailable(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_or_a_template_leads_to_a_function() {
        for (text, url) in [
            ("http://gateway:8080", "http://gateway:8080/function/store"),
            ("http://gateway/faas/", "http://gateway/faas/function/store"),
            ("http://{function}.default.example.com", "http://store.default.example.com/"),
        ] {
            assert_eq!(text.parse::<Via>().unwrap().url("store").unwrap().as_str(), url);
        }
        for bad in ["gateway", "https://gateway", "http://", "sqlite:x", "http://gateway?x=y"] {
            assert!(bad.parse::<Via>().is_err(), "{bad}");
        }
        assert_eq!("http://a:geheim@g".parse::<Via>().unwrap().to_string(), "http://g/function/{function}");
    }
}
