//! Maps routes to handlers, and answers requests that match none.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use domain::Store;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full};
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
type Handler<S> = Box<dyn Fn(S, Request) -> BoxFuture<Result<Response, Error>> + Send + Sync>;

/// What the handlers of a function share. Clones are cheap and share everything.
pub trait State: Clone + Send + Sync + 'static {
    /// Whether a request could be served now.
    fn ready(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Makes the function unready while its writes are stalled.
    fn progress(&self) -> Option<Progress> {
        None
    }
}

impl<S: Store + ?Sized + 'static> State for Arc<S> {
    async fn ready(&self) -> Result<(), Error> {
        Ok(Store::ready(&**self).await?)
    }
}

impl State for () {
    async fn ready(&self) -> Result<(), Error> {
        Ok(())
    }
}

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

impl Request {
    /// A request whose body was read.
    pub(crate) fn new(head: http::request::Parts, body: Bytes) -> Self {
        Self {
            method: route_method(&head.method),
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            headers: head.headers,
            body,
        }
    }
}

/// The method whose handler answers: `HEAD` is answered like `GET`, and the server drops the body.
pub(crate) fn route_method(method: &Method) -> Method {
    if *method == Method::HEAD { Method::GET } else { method.clone() }
}

/// The paths of the liveness probe: ours, OpenFaaS' and Knative func's.
const LIVE: [&str; 3] = ["/healthz", "/_/health", "/health/liveness"];
/// The paths of the readiness probe, likewise.
const READY: [&str; 3] = ["/readyz", "/_/ready", "/health/readiness"];

/// Maximum number of characters of a path that a response repeats.
const SHOWN: usize = 200;

/// A function's routes.
pub struct Router<S> {
    state: S,
    routes: HashMap<&'static str, Vec<(Method, Handler<S>)>>,
    mark: Option<HeaderValue>,
    token: Option<String>,
}

impl<S: State> Router<S> {
    /// Only the probes: always alive, ready if the state is. At most one check of the state is in flight, and it
    /// completes even if probes disconnect. Probes are answered within 100 ms.
    pub fn new(state: S) -> Self {
        let (readiness, checked) = (state.progress(), state.clone());
        let readiness = Readiness::new(readiness, move || {
            let state = checked.clone();
            async move { state.ready().await }
        });
        let mut router = Self { state, routes: HashMap::new(), mark: None, token: None };
        for path in LIVE {
            router = router.get(path, |_, _| async { Ok(text("ok")) });
        }
        for path in READY {
            let readiness = readiness.clone();
            router = router.get(path, move |_, _| {
                let readiness = readiness.clone();
                async move { readiness.probe().await.map(|()| text("ok")) }
            });
        }
        router
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

    /// Adds a handler of `GET` and `HEAD`. The path must match exactly.
    #[must_use]
    pub fn get<F>(self, path: &'static str, handler: impl Fn(S, Request) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Response, Error>> + Send + 'static,
    {
        self.route(Method::GET, path, handler)
    }

    /// Adds a handler of `POST`. The path must match exactly.
    #[must_use]
    pub fn post<F>(
        self,
        path: &'static str,
        handler: impl Fn(S, Request) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Response, Error>> + Send + 'static,
    {
        self.route(Method::POST, path, handler)
    }

    fn route<F>(
        mut self,
        method: Method,
        path: &'static str,
        handler: impl Fn(S, Request) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Response, Error>> + Send + 'static,
    {
        let handler: Handler<S> = Box::new(move |state, request| Box::pin(handler(state, request)));
        self.routes.entry(path).or_default().push((method, handler));
        self
    }

    /// Finds the route of a request and checks its token, before its body is read. Otherwise returns the response:
    /// 401, 404, 405, or the answer to `OPTIONS`.
    pub(crate) fn find(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Route<'_, S>, Box<Response>> {
        if *method == Method::OPTIONS && path == "*" {
            return Err(Box::new(allowing(empty(StatusCode::NO_CONTENT), "GET, HEAD, POST, OPTIONS")));
        }
        let Some(handlers) = self.routes.get(path) else {
            return Err(Box::new(self.not_found(path)));
        };
        if let Some((_, handler)) = handlers.iter().find(|(m, _)| m == method) {
            if *method != Method::GET {
                self.authorize(headers)?;
            }
            return Ok(Route { state: &self.state, handler });
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

    /// Answers a request without a server, as tests of handlers need it.
    pub async fn call(&self, request: http::Request<Bytes>) -> http::Response<Bytes> {
        let (head, body) = request.into_parts();
        let request = Request::new(head, body);
        let response = match self.find(&request.method, &request.path, &request.headers) {
            Ok(route) => route.answer(request).await,
            Err(response) => *response,
        };
        let (head, body) = response.into_parts();
        let Ok(body) = body.collect().await;
        http::Response::from_parts(head, body.to_bytes())
    }
}

/// The handler that a request is for.
pub(crate) struct Route<'a, S> {
    state: &'a S,
    handler: &'a Handler<S>,
}

impl<S: State> Route<'_, S> {
    pub(crate) async fn answer(&self, request: Request) -> Response {
        (self.handler)(self.state.clone(), request).await.unwrap_or_else(|error| failure(&error))
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
