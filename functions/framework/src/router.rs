//! Maps routes to handlers, and answers requests that match none.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use subtle::ConstantTimeEq;

use crate::{
    error::{Error, Problem},
    progress::Progress,
    readiness::Readiness,
};

/// The response header with a function's name. A response without it came from a proxy.
pub const FUNCTION: HeaderName = HeaderName::from_static("x-lambda-function");
/// The request header with the secret that internal functions may require from event senders.
pub const EVENT_TOKEN: HeaderName = HeaderName::from_static("x-event-token");

/// A complete response.
pub type Response = http::Response<Full<Bytes>>;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Handler = Box<dyn Fn(Request) -> BoxFuture<Result<Response, Error>> + Send + Sync>;

/// A request with its complete body, within the size limit.
#[derive(Debug)]
pub struct Request {
    /// As sent; GET where the client sent HEAD.
    pub method: Method,
    /// Without the query.
    pub path: String,
    /// Behind the `?`, still encoded; empty when there is none.
    pub query: String,
    /// As sent.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// The paths of the liveness probe: ours, OpenFaaS' and Knative func's.
const LIVE: [&str; 3] = ["/healthz", "/_/health", "/health/liveness"];
/// The paths of the readiness probe, likewise.
const READY: [&str; 3] = ["/readyz", "/_/ready", "/health/readiness"];

/// Maximum number of characters of a path that a response repeats.
const SHOWN: usize = 200;

/// A function's routes.
pub struct Router {
    routes: HashMap<&'static str, Vec<(Method, Handler)>>,
    readiness: Readiness,
    mark: Option<HeaderValue>,
    token: Option<String>,
}

impl Router {
    /// Only the probes: always alive, ready if `check` succeeds. At most one `check` is in flight, and it completes
    /// even if probes disconnect. Probes are answered within 100 ms.
    pub fn new<F>(check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let readiness = Readiness::new(check);
        let (routes, shared) = (HashMap::new(), readiness.clone());
        let mut router = Self { routes, readiness, mark: None, token: None };
        for path in LIVE {
            router = router.route(Method::GET, path, |_| async { Ok(text("ok")) });
        }
        for path in READY {
            let readiness = shared.clone();
            router = router.route(Method::GET, path, move |_| {
                let readiness = readiness.clone();
                async move { readiness.probe().await.map(|()| text("ok")) }
            });
        }
        router
    }

    /// Makes the function unready while a writer is stalled.
    #[must_use]
    pub fn watching(self, writer: Progress) -> Self {
        self.readiness.watch(writer);
        self
    }

    /// Adds the function's name to every response, in [`FUNCTION`].
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.mark = Some(HeaderValue::from_static(name));
        self
    }

    /// Requires the secret in [`EVENT_TOKEN`], except for requests that only read. `None` disables the check.
    #[must_use]
    pub fn guarded(mut self, token: Option<String>) -> Self {
        self.token = token;
        self
    }

    pub(crate) fn mark(&self) -> Option<HeaderValue> {
        self.mark.clone()
    }

    /// Adds a route. The path must match exactly.
    #[must_use]
    pub fn route<F>(
        mut self,
        method: Method,
        path: &'static str,
        handler: impl Fn(Request) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Response, Error>> + Send + 'static,
    {
        let handler: Handler = Box::new(move |request| Box::pin(handler(request)));
        self.routes.entry(path).or_default().push((method, handler));
        self
    }

    /// Checks a request before its body is read: route, method and token. Returns the response if there is nothing to
    /// read: 401, 404, 405, or the answer to `OPTIONS`.
    pub(crate) fn check(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(), Box<Response>> {
        if *method == Method::OPTIONS && path == "*" {
            return Err(Box::new(allowing(empty(StatusCode::NO_CONTENT), "GET, HEAD, POST, OPTIONS")));
        }
        let Some(handlers) = self.routes.get(path) else {
            return Err(Box::new(self.not_found(path)));
        };
        if handlers.iter().any(|(m, _)| m == method) {
            return if *method == Method::GET { Ok(()) } else { self.authorize(headers) };
        }
        let mut allowed: Vec<_> = handlers.iter().map(|(m, _)| m.as_str()).collect();
        if allowed.contains(&"GET") {
            allowed.push("HEAD");
        }
        allowed.push("OPTIONS");
        let allowed = allowed.join(", ");
        let response = if *method == Method::OPTIONS {
            empty(StatusCode::NO_CONTENT)
        } else {
            problem(StatusCode::METHOD_NOT_ALLOWED, format!("`{path}` takes {allowed}, not {method}"))
        };
        Err(Box::new(allowing(response, &allowed)))
    }

    fn not_found(&self, path: &str) -> Response {
        let mut known: Vec<_> =
            self.routes.keys().filter(|p| !LIVE.contains(p) && !READY.contains(p)).collect();
        known.sort();
        let path: String = path.chars().take(SHOWN).collect();
        problem(StatusCode::NOT_FOUND, format!("there is no `{path}` here; there is {known:?}"))
    }

    /// Constant-time comparison, so that the response time does not reveal the secret.
    fn authorize(&self, headers: &HeaderMap) -> Result<(), Box<Response>> {
        let Some(token) = &self.token else { return Ok(()) };
        let sent = headers.get(EVENT_TOKEN).map(HeaderValue::as_bytes).unwrap_or_default();
        if token.as_bytes().ct_eq(sent).into() {
            return Ok(());
        }
        let detail = format!("this function takes events only with the right `{EVENT_TOKEN}`");
        let mut response = problem(StatusCode::UNAUTHORIZED, detail);
        let challenge = HeaderValue::from_static("EventToken realm=\"events\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        Err(Box::new(response))
    }

    /// Answers a request.
    pub async fn answer(&self, request: Request) -> Response {
        if let Err(response) = self.check(&request.method, &request.path, &request.headers) {
            return *response;
        }
        let handlers = self.routes.get(request.path.as_str());
        let found = handlers.and_then(|list| list.iter().find(|(m, _)| *m == request.method));
        match found {
            Some((_, handler)) => handler(request).await.unwrap_or_else(|error| failure(&error)),
            None => problem(StatusCode::NOT_FOUND, "there is nothing here"),
        }
    }
}

/// A JSON answer.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => answer(status, "application/json", body),
        Err(e) => problem(StatusCode::INTERNAL_SERVER_ERROR, format!("the answer could not be written: {e}")),
    }
}

/// A response whose bytes already have the media type.
pub fn answer(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// An answer without a body.
#[must_use]
pub fn empty(status: StatusCode) -> Response {
    let mut response = http::Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// The RFC 9457 answer for a status.
pub fn problem(status: StatusCode, detail: impl Into<String>) -> Response {
    answer(status, "application/problem+json", Problem::new(status, detail).to_json())
}

fn allowing(mut response: Response, methods: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(methods) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

fn failure(error: &Error) -> Response {
    let mut response = problem(error.status(), error.to_string());
    if let Error::Unavailable(why) | Error::Busy(why) = error {
        tell(why);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Milliseconds after `STARTED` of the last log line about a failed request, plus one.
static TOLD: AtomicU64 = AtomicU64::new(0);
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Logs why a request failed, at most once a second: in an outage every request fails.
fn tell(why: &str) {
    let now = u64::try_from(STARTED.elapsed().as_millis()).unwrap_or(u64::MAX) + 1;
    let told = TOLD.load(Ordering::Relaxed);
    let due = told == 0 || now - told.min(now) >= 1_000;
    if due && TOLD.compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        tracing::warn!(why, "could not do it now");
    }
}

fn text(body: &'static str) -> Response {
    answer(StatusCode::OK, "text/plain; charset=utf-8", body)
}
