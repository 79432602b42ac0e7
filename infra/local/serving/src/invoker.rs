//! Sends requests to functions by name, as Knative's activator and queue-proxy do.
//! Every request gets a response: the function's, or a problem document with the reason.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use framework::error::Problem;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::Full;

use crate::{
    function::{Function, Outcome},
    pool::Refusal,
};

/// Hop-by-hop headers (RFC 9110, 7.6.1) and those that the HTTP client sets itself. Headers that begin with [`PROXY`]
/// are hop-by-hop too.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
];
/// Prefix of headers between a client and a proxy.
const PROXY: &str = "proxy-";

/// Reaches every function; cheap to clone.
#[derive(Clone)]
pub struct Invoker {
    functions: Arc<BTreeMap<String, Function>>,
}

impl Invoker {
    pub(crate) fn new(functions: Arc<BTreeMap<String, Function>>) -> Self {
        Self { functions }
    }

    /// The functions' names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.functions.keys().map(String::as_str)
    }

    /// Whether there is such a function.
    #[must_use]
    pub fn knows(&self, function: &str) -> bool {
        self.functions.contains_key(function)
    }

    /// Sends a request to a function. One that may have been processed is retried only if its method is safe.
    pub async fn send(&self, function: &str, request: Request<Bytes>) -> Response<Bytes> {
        let Some(found) = self.functions.get(function) else {
            let known: Vec<_> = self.names().collect();
            return refuse(
                StatusCode::NOT_FOUND,
                format!("there is no function `{function}`; there is {known:?}"),
            );
        };
        let request = outgoing(function, request);
        match found.send(request).await {
            Ok(mut response) => {
                strip(response.headers_mut());
                response
            }
            Err(Outcome::TimedOut) => {
                let seconds = found.replicas.spec.timeout.as_secs_f64();
                refuse(
                    StatusCode::GATEWAY_TIMEOUT,
                    format!("`{function}` did not answer within its timeout of {seconds} s"),
                )
            }
            Err(outcome) => failure(function, outcome),
        }
    }
}

/// The request as sent to the function: HTTP/1.1, origin form, without hop-by-hop headers.
fn outgoing(function: &str, request: Request<Bytes>) -> Request<Full<Bytes>> {
    let (mut head, body) = request.into_parts();
    strip(&mut head.headers);
    head.headers.remove(header::CONTENT_LENGTH);
    if !head.headers.contains_key(header::HOST) {
        let host = match head.uri.authority() {
            Some(authority) => authority.to_string(),
            None => format!("{function}.default.localhost"),
        };
        if let Ok(host) = HeaderValue::from_str(&host) {
            head.headers.insert(header::HOST, host);
        }
    }
    if head.uri.authority().is_some() {
        head.uri =
            head.uri.path_and_query().map_or_else(|| "/".parse(), |p| p.as_str().parse()).unwrap_or_default();
    }
    head.version = Version::HTTP_11;
    Request::from_parts(head, Full::new(body))
}

/// Removes hop-by-hop headers. Call it before adding headers: `Connection` may name any header.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // End-to-end headers that the function needs; a client cannot have them removed.
        .filter(|name| *name != header::HOST && *name != header::CONTENT_TYPE)
        .collect();
    let proxy: Vec<_> = headers.keys().filter(|name| name.as_str().starts_with(PROXY)).cloned().collect();
    for name in named.iter().chain(&proxy).chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn failure(function: &str, outcome: Outcome) -> Response<Bytes> {
    let (status, detail) = match outcome {
        Outcome::Broken(why) => {
            let detail = format!("`{function}` ended before it answered ({why}); it may have done its work");
            return refuse(StatusCode::BAD_GATEWAY, detail);
        }
        Outcome::NotSent(why) => (503, format!("`{function}` could not be reached ({why}); try again")),
        Outcome::Refused(Refusal::Full) => {
            (503, format!("too many requests wait for `{function}`; try again"))
        }
        Outcome::Refused(Refusal::Stopping) => {
            (503, "the runtime ends; try again once it is back".to_owned())
        }
        Outcome::TimedOut => (504, format!("`{function}` did not answer in time")),
        Outcome::Refused(Refusal::CrashLoop(why)) => {
            (503, format!("`{function}` ends whenever it is started: {why}"))
        }
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let mut response = refuse(status, detail);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// A problem document (RFC 9457).
pub(crate) fn refuse(status: StatusCode, detail: impl Into<String>) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(Problem::new(status, detail).to_json()));
    *response.status_mut() = status;
    let media_type = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}
