//! Which handler answers which route, and what is answered when none does.

use std::{collections::HashMap, future::Future, pin::Pin};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

use crate::error::{Error, Problem};

/// A whole answer.
pub type Response = http::Response<Full<Bytes>>;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Handler = Box<dyn Fn(Request) -> BoxFuture<Result<Response, Error>> + Send + Sync>;
type Check = Box<dyn Fn() -> BoxFuture<Result<(), Error>> + Send + Sync>;

/// A request whose body was read, within its limit.
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

/// A function's routes.
pub struct Router {
    routes: HashMap<&'static str, Vec<(Method, Handler)>>,
}

impl Router {
    /// Only the probes: alive always, ready when `check` says so.
    pub fn new<F>(check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let mut router = Self { routes: HashMap::new() };
        for path in LIVE {
            router = router.route(Method::GET, path, |_| async { Ok(text("ok")) });
        }
        let check: std::sync::Arc<Check> = std::sync::Arc::new(Box::new(move || Box::pin(check())));
        for path in READY {
            let check = check.clone();
            router = router.route(Method::GET, path, move |_| {
                let checked = check();
                async move { checked.await.map(|()| text("ok")) }
            });
        }
        router
    }

    /// Adds a route; the path is matched whole.
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

    /// Whether the route is there; otherwise the 404 or 405 that the body need not be read for.
    pub(crate) fn check(&self, method: &Method, path: &str) -> Result<(), Box<Response>> {
        let Some(handlers) = self.routes.get(path) else {
            let mut known: Vec<_> =
                self.routes.keys().filter(|p| !LIVE.contains(p) && !READY.contains(p)).collect();
            known.sort();
            let detail = format!("there is no `{path}` here; there is {known:?}");
            return Err(Box::new(problem(StatusCode::NOT_FOUND, detail)));
        };
        if handlers.iter().any(|(m, _)| m == method) {
            return Ok(());
        }
        let mut allowed: Vec<_> = handlers.iter().map(|(m, _)| m.as_str()).collect();
        if allowed.contains(&"GET") {
            allowed.push("HEAD");
        }
        let allowed = allowed.join(", ");
        let mut response =
            problem(StatusCode::METHOD_NOT_ALLOWED, format!("`{path}` takes {allowed}, not {method}"));
        if let Ok(value) = HeaderValue::from_str(&allowed) {
            response.headers_mut().insert(header::ALLOW, value);
        }
        Err(Box::new(response))
    }

    /// Answers a request.
    pub async fn answer(&self, request: Request) -> Response {
        if let Err(response) = self.check(&request.method, &request.path) {
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

/// An answer of bytes that are of the media type already.
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

fn failure(error: &Error) -> Response {
    let mut response = problem(error.status(), error.to_string());
    if let Error::Unavailable(why) | Error::Busy(why) = error {
        tracing::warn!(why, "could not do it now");
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn text(body: &'static str) -> Response {
    answer(StatusCode::OK, "text/plain; charset=utf-8", body)
}
