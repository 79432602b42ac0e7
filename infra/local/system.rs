//! The system: functions, arrows and gateway, put together.

use std::{
    fs::{File, OpenOptions, TryLockError, create_dir_all},
    future::Future,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use async_trait::async_trait;
use backend_log::Log;
use bytes::Bytes;
use eventing::{
    arrows::{self, Arrows, Playing},
    sink::{Sink, SinkError},
};
use serving::{FunctionSpec, Invoker, Launch, Processes, Serving, status::Change};
use shared::{
    config::{Config, ConfigError},
    telemetry,
};
use tokio::{
    net::TcpListener,
    sync::{broadcast, mpsc},
};
use tokio_util::sync::CancellationToken;

use crate::{command::Place, manifests, page::StatusPage};

/// How long a function may take to end after SIGTERM: longer than it waits for its own requests.
const GRACE: Duration = Duration::from_secs(65);

/// What manifests and configuration describe; nothing of it runs yet.
pub(crate) struct System {
    pub(crate) arrows: Arrows,
    pub(crate) log: Arc<dyn Log>,
    config: Config,
    data: PathBuf,
    specs: Vec<FunctionSpec>,
}

impl System {
    /// Reads manifests and configuration.
    pub(crate) fn open(place: &Place) -> anyhow::Result<Self> {
        create_dir_all(&place.data).with_context(|| format!("cannot make {}", place.data.display()))?;
        let data = place.data.canonicalize()?;
        let config = Config::read(|key| std::env::var(key).ok(), &data)?;
        let log = backend_log::open(&config.log_url)?;
        let arrows = manifests::read(&place.manifests)?;
        let topic = backend_log::topic(&config.log_url);
        if !arrows.kafka_sources.is_empty() && !arrows.read_topic(&topic) {
            let why = format!("users would go to the topic `{topic}`, which no KafkaSource reads");
            return Err(ConfigError::new("LOG_URL", why).into());
        }
        let specs = manifests::specs(&arrows)?;
        Ok(Self { arrows, log, config, data, specs })
    }

    /// Takes charge of the functions; they start when something calls them.
    pub(crate) fn serve(&self) -> anyhow::Result<Serving> {
        let Config { log_url, master_url, views_url, log_level, .. } = &self.config;
        let env: Vec<_> = [
            ("LOG_URL", log_url),
            ("MASTER_URL", master_url),
            ("VIEWS_URL", views_url),
            ("LOG_LEVEL", log_level),
        ]
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .into();
        let program = this_program();
        let launch = move |spec: &FunctionSpec| Launch {
            program: program.clone(),
            args: vec!["function".to_owned(), spec.name.clone()],
            env: env.clone(),
        };
        Ok(Serving::start(self.specs.clone(), Processes::new(launch, self.data.join("logs"), GRACE))?)
    }

    /// Runs everything until `stop`, then ends it in the order in which requests flow.
    pub(crate) async fn run(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let _lock = lock(&self.data)?;
        let logs = self.data.join("logs");
        create_dir_all(&logs)?;
        let log_file = OpenOptions::new().create(true).append(true).open(logs.join("runtime.log"))?;
        let telemetry = telemetry::start("runtime", &self.config, log_file)?;
        let serving = Arc::new(self.serve()?);
        let (news, letters) = mpsc::unbounded_channel();
        let terminal = tokio::spawn(tell(serving.changes(), letters));
        let sink: Arc<dyn Sink> = Arc::new(FunctionSink(serving.invoker()));
        let stop_arrows = CancellationToken::new();
        let playing: Arc<Playing> =
            Arc::new(arrows::play(&self.arrows, &self.log, &sink, news, &stop_arrows));
        say(&format!("listening on http://{}", listener.local_addr()?));
        say(&format!("data in {}, status at /, analytics at /service-analytics/", self.data.display()));
        let page = Arc::new(StatusPage { serving: serving.clone(), playing: playing.clone() });
        let status = move |request| {
            let page = page.clone();
            async move { page.answer(&request).await }
        };
        serving.gateway(listener, status, stop).await;
        say("stopping");
        stop_arrows.cancel();
        playing.ended().await;
        serving.shutdown().await;
        telemetry.flush();
        terminal.abort();
        Ok(())
    }
}

/// Functions as the place where events are sent.
pub(crate) struct FunctionSink(pub(crate) Invoker);

#[async_trait]
impl Sink for FunctionSink {
    async fn send(
        &self,
        function: &str,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, SinkError> {
        Ok(self.0.send(function, request).await)
    }
}

/// Writes a line to the terminal; one that is gone is no reason to stop.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

async fn tell(mut changes: broadcast::Receiver<Change>, mut letters: mpsc::UnboundedReceiver<String>) {
    loop {
        let line = tokio::select! {
            change = changes.recv() => match change {
                Ok(Change::Scaled { function, to: 0 }) => format!("{function} scaled to zero"),
                Ok(Change::Scaled { function, to }) => format!("{function} scaled to {to}"),
                Ok(Change::Crashed { function, why }) => format!("{function} ended by itself: {why}"),
                Err(broadcast::error::RecvError::Lagged(missed)) => format!("and {missed} changes more"),
                Err(broadcast::error::RecvError::Closed) => return,
            },
            Some(letter) = letters.recv() => letter,
        };
        say(&format!("{} {line}", chrono::Utc::now().format("%H:%M:%S")));
    }
}

/// The same program, also when its file was replaced since.
fn this_program() -> PathBuf {
    let link = Path::new("/proc/self/exe");
    if link.exists() {
        return link.to_owned();
    }
    std::env::current_exe().unwrap_or_else(|_| "lambda-architecture".into())
}

/// Two runtimes on the same data would play every arrow twice. The kernel frees the lock when its holder dies.
fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join("runtime.lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "the system runs on {} already; stop it, or give another folder with --data",
            data.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}
