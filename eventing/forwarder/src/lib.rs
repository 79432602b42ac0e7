//! Runs the event sources of `eventing/*.yaml` in front of OpenFaaS, whose Community Edition has none: reads the log,
//! produces the timer's ticks, and posts each event to its function's URL at the gateway, with retries and dead
//! letters. Depends only on the gateway, not on how functions run behind it.

mod gateway;
mod settings;

use std::{io, path::PathBuf, process::ExitCode, sync::Arc};

use backend_log::Log;
use eventing::{
    event_sources::{self, Resources, RunningSources},
    files::{self, FilesError},
    manifest::ManifestError,
    sink::Sink,
};
use framework::{
    config::{ConfigError, EXIT_CONFIG},
    error::Error,
    router::{Router, State, json},
    serve, telemetry,
};
use http::StatusCode;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

pub use crate::{gateway::Gateway, settings::Settings};

/// Folders of the image that hold the manifests of the event sources and of the functions that they send to.
const IN_IMAGE: [&str; 2] = ["/etc/lambda-architecture/eventing", "/etc/lambda-architecture/functions"];

/// The reason why the forwarder ended.
#[derive(Debug, thiserror::Error)]
pub enum ForwarderError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A manifest is missing or cannot be read.
    #[error("a manifest is missing")]
    Files(#[from] FilesError),
    /// The gateway's HTTP client cannot be created.
    #[error("the gateway's client")]
    Client(#[from] reqwest::Error),
    /// The async runtime, the listening port or the signal handlers cannot be set up.
    #[error("forwarder")]
    Io(#[from] io::Error),
}

/// Runs the event sources of the manifests, or folders of manifests, that are given as arguments, or else those of the
/// image, until SIGTERM. Exits with 64 and one line on standard error if the configuration is wrong.
pub fn run() -> ExitCode {
    let mut manifests: Vec<_> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if manifests.is_empty() {
        manifests.extend(IN_IMAGE.map(PathBuf::from));
    }
    // One thread is enough: it waits for the log and the gateway, and backends have their own threads.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(ForwarderError::from).and_then(|runtime| runtime.block_on(start(&manifests)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", Error::unavailable(&error));
            match error {
                ForwarderError::Config(_) => ExitCode::from(EXIT_CONFIG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

async fn start(manifests: &[PathBuf]) -> Result<(), ForwarderError> {
    let settings = Settings::read(|key| std::env::var(key).ok())?;
    let telemetry = telemetry::start("forwarder", &settings.config, io::stdout)?;
    let log = backend_log::open(&settings.log_url)?;
    let listener = TcpListener::bind(("0.0.0.0", settings.config.port)).await?;
    let stop = CancellationToken::new();
    let stopping = stop.clone().drop_guard();
    let terminated = serve::terminated()?;
    tokio::spawn(async move {
        terminated.await;
        drop(stopping);
    });
    let gateway = Arc::new(Gateway::new(settings.gateway)?);
    forward(&read(manifests)?, log, gateway, listener, stop).await;
    telemetry.flush();
    Ok(())
}

/// Reads event sources from manifests and from folders of manifests.
pub fn read(manifests: &[PathBuf]) -> Result<Resources, ForwarderError> {
    let texts = files::read(manifests)?;
    Ok(Resources::read(texts.iter().map(|(file, text)| (file.as_str(), text.as_str())))?)
}

/// Runs the event sources and serves probes until `stop`. Then waits for events in flight, and commits.
pub async fn forward(
    arrows: &Resources,
    log: Arc<dyn Log>,
    gateway: Arc<Gateway>,
    listener: TcpListener,
    stop: CancellationToken,
) {
    let (news, mut letters) = mpsc::unbounded_channel::<String>();
    // Ends with the event sources, which hold the sender.
    tokio::spawn(async move {
        while let Some(letter) = letters.recv().await {
            tracing::error!(letter, "an event needs somebody's care");
        }
    });
    let sink: Arc<dyn Sink> = gateway.clone();
    let sources = Arc::new(event_sources::run(arrows, &log, &sink, news, &stop));
    let probes = routes(Forwarder { log, gateway, sources: sources.clone() });
    serve::serve(listener, probes, stop.cancelled_owned()).await;
    sources.ended().await;
}

/// The probes; `GET /arrows`: the progress and the lag of each event source; and `GET /tasks`: the other background
/// tasks and their failures.
fn routes(forwarder: Forwarder) -> Router<Forwarder> {
    Router::new(forwarder)
        .get("/arrows", async |forwarder: Forwarder, _| {
            Ok(json(StatusCode::OK, &forwarder.sources.status().await))
        })
        .get("/tasks", async |forwarder: Forwarder, _| Ok(json(StatusCode::OK, &forwarder.sources.tasks())))
}

/// The state of the forwarder's routes.
#[derive(Clone)]
struct Forwarder {
    log: Arc<dyn Log>,
    gateway: Arc<Gateway>,
    sources: Arc<RunningSources>,
}

impl State for Forwarder {
    async fn ready(&self) -> Result<(), Error> {
        self.log.ready().await?;
        self.gateway.ready().await
    }
}
