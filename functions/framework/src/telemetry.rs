//! Logs as JSON lines on standard output, and traces to an OTLP collector if one is configured.

use std::{
    fmt,
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use chrono::{SecondsFormat, Utc};
use http::{Method, Uri};
use opentelemetry::{propagation::TextMapPropagator, trace::TracerProvider as _};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use serde_json::{Map, Value};
use tracing::{Event, Instrument, Subscriber, field::Field};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{
    Layer,
    filter::Targets,
    fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::{
    call,
    config::{Config, ConfigError},
    metrics,
    router::Response,
};

/// Whether metrics or traces are on, so that they cost nothing when off.
static TRACES: AtomicBool = AtomicBool::new(false);
static METERS: AtomicBool = AtomicBool::new(false);

/// Holds the exporter, if there is one.
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Flushes pending spans.
    pub fn flush(self) {
        if let Some(provider) = self.0
            && let Err(error) = provider.shutdown()
        {
            eprintln!("the last traces could not be sent: {error}");
        }
    }
}

/// Starts logging to `logs`, and tracing when an endpoint is configured.
pub fn start<W>(name: &'static str, config: &Config, logs: W) -> Result<Telemetry, ConfigError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // Not `EnvFilter`: its regular expressions would be a tenth of a function's size.
    let filter: Targets = (config.log_level.parse())
        .map_err(|e| ConfigError::new("LOG_LEVEL", format!("`{}` is no filter: {e}", config.log_level)))?;
    let provider = config.otlp_endpoint.as_deref().map(|endpoint| exporter(name, endpoint)).transpose()?;
    let traces = provider.as_ref().map(|p| tracing_opentelemetry::layer().with_tracer(p.tracer(name)));
    // On a full disk, losing log lines is all that may happen: reporting the failure on standard error, possibly on the
    // same disk, would panic in the code that logs.
    let logs =
        tracing_subscriber::fmt::layer().event_format(JsonLine).log_internal_errors(false).with_writer(logs);
    // A second start in one process (tests) keeps the first's subscriber.
    let _ = tracing_subscriber::registry().with(traces).with(logs.with_filter(filter)).try_init();
    TRACES.store(provider.is_some(), Ordering::Relaxed);
    METERS.store(config.metrics_port.is_some(), Ordering::Relaxed);
    Ok(Telemetry(provider))
}

fn exporter(name: &'static str, endpoint: &str) -> Result<SdkTracerProvider, ConfigError> {
    if !endpoint.starts_with("http://") {
        return Err(ConfigError::new(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "only an http:// URL is understood, as of a collector beside the function",
        ));
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .build()
        .map_err(|e| ConfigError::new("OTEL_EXPORTER_OTLP_ENDPOINT", e))?;
    let resource = Resource::builder().with_service_name(name).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// A request in progress.
pub(crate) struct Observed {
    method: Method,
    uri: Uri,
    started: Instant,
    span: tracing::Span,
}

/// Starts observing a request; its trace continues from `traceparent`.
pub(crate) fn observe<B>(request: &http::Request<B>) -> Observed {
    let span = if TRACES.load(Ordering::Relaxed) {
        let headers = request.headers();
        let span = tracing::info_span!("request", method = %request.method(), path = request.uri().path(), status = tracing::field::Empty);
        let carrier: std::collections::HashMap<String, String> = ["traceparent", "tracestate"]
            .into_iter()
            .filter_map(|name| {
                let value = headers.get(name).or_else(|| headers.get(format!("ce-{name}")))?;
                Some((name.to_owned(), value.to_str().ok()?.to_owned()))
            })
            .collect();
        let _ = span.set_parent(TraceContextPropagator::new().extract(&carrier));
        span
    } else {
        tracing::Span::none()
    };
    Observed { method: request.method().clone(), uri: request.uri().clone(), started: Instant::now(), span }
}

impl Observed {
    /// Runs the handler inside the span, then counts and logs the request.
    pub(crate) async fn run(self, answering: impl Future<Output = Response>) -> Response {
        let response = answering.instrument(self.span.clone()).await;
        self.span.record("status", response.status().as_u16());
        if METERS.load(Ordering::Relaxed) {
            metrics::answered(&self.method, response.status(), self.started.elapsed());
        }
        let (status, took) = (response.status().as_u16(), self.started.elapsed().as_micros() as u64);
        tracing::debug!(method = %self.method, path = self.uri.path(), status, microseconds = took, "answered");
        response
    }
}

/// One JSON object per line: `level`, `timestamp`, `caller`, `msg`, the call's id if it has one, the event's fields.
struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let meta = event.metadata();
        let mut line = Map::new();
        line.insert("level".into(), meta.level().as_str().to_lowercase().into());
        line.insert("timestamp".into(), Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true).into());
        let caller = format!("{}:{}", meta.file().unwrap_or("?"), meta.line().unwrap_or(0));
        line.insert("caller".into(), caller.into());
        line.insert("msg".into(), Value::Null);
        if let Some(id) = call::current() {
            line.insert("callId".into(), id.into());
        }
        event.record(&mut Fields(&mut line));
        writeln!(writer, "{}", Value::Object(line))
    }
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        let name = if field.name() == "message" { "msg" } else { field.name() };
        self.0.insert(name.to_owned(), value);
    }
}

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}
