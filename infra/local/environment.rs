//! The environment of a function's process: the keys that its manifest names, and what every process needs.

use framework::config::Config;
use serving::FunctionSpec;

use crate::stores::Stores;

/// Variables that a function inherits, because they concern no store: what a program needs to start, and what tests and
/// debuggers preload.
const INHERITED: [&str; 13] = [
    "PATH",
    "HOME",
    "LANG",
    "TZ",
    "TMPDIR",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "LLVM_PROFILE_FILE",
    "TOKIO_WORKER_THREADS",
    "DONT_FAKE_MONOTONIC",
    "NO_FAKE_STAT",
];
/// The same, by prefix.
const INHERITED_PREFIXES: [&str; 4] = ["LC_", "RUST_", "OTEL_", "FAKETIME"];
/// Keys that every function gets. `METRICS_PORT` is not among them: replicas on one machine cannot share a port.
const COMMON: [&str; 2] = ["LOG_LEVEL", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const METRICS_PORT: &str = "METRICS_PORT";

/// All variables of a function's process, except those of the protocol between it and the runtime.
pub(crate) fn of_function(spec: &FunctionSpec, stores: &Stores, config: &Config) -> Vec<(String, String)> {
    let inherited = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(key, _)| is_inherited(key));
    let own = spec.keys.iter().map(String::as_str).filter(|key| *key != METRICS_PORT);
    let given = COMMON.into_iter().chain(own).filter_map(|key| {
        let value = stores.url(key).map(str::to_owned).or_else(|| config.value(key))?;
        Some((key.to_owned(), value))
    });
    // Hides this process' configuration file, which contains the keys of all functions.
    let no_file = ("CONFIG_FILE".to_owned(), "/dev/null".to_owned());
    inherited.chain(given).chain([no_file]).collect()
}

fn is_inherited(key: &str) -> bool {
    INHERITED.contains(&key) || INHERITED_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_function_gets_the_keys_that_it_names_and_no_others() {
        let get = |key: &str| match key {
            "MASTER_URL" => Some("mysql://app:$(MYSQL_PASSWORD)@db/lambda".to_owned()),
            "MYSQL_PASSWORD" => Some("geheim".to_owned()),
            "SPEED_RETENTION" => Some("1d".to_owned()),
            "METRICS_PORT" => Some("9090".to_owned()),
            "CONFIG_FILE" => Some("app.env".to_owned()),
            _ => None,
        };
        let config = Config::of(get, Path::new("data")).unwrap();
        let stores = Stores::read(&config).unwrap();
        let given = |keys: &[&str]| {
            let keys = keys.iter().map(|key| (*key).to_owned()).collect();
            let spec = FunctionSpec { keys, ..FunctionSpec::named("f") };
            let mut given = of_function(&spec, &stores, &config);
            given.retain(|(key, _)| !is_inherited(key));
            given.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
        };
        let no_file = "CONFIG_FILE=/dev/null";
        assert_eq!(given(&["LOG_URL", "METRICS_PORT"]), ["LOG_URL=sqlite:data/log.db", no_file]);
        assert_eq!(given(&["MASTER_URL"]), ["MASTER_URL=mysql://app:geheim@db/lambda", no_file]);
        assert_eq!(given(&["SPEED_RETENTION", "NOT_SET"]), ["SPEED_RETENTION=1d", no_file]);
    }
}
