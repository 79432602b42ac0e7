//! Checks which packages may depend on which: a function's `Cargo.toml` documents its data flow.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// All packages of this workspace, each with the workspace packages that it depends on.
const ARROWS: [(&str, &[&str]); 18] = [
    ("domain", &[]),
    ("event", &[]),
    ("connect", &[]),
    ("framework", &["connect", "domain", "event"]),
    ("backend-sqlite", &["connect", "domain"]),
    ("backend-log", &["backend-sqlite", "connect", "domain", "event"]),
    ("backend-master", &["backend-sqlite", "connect", "domain"]),
    ("backend-views", &["backend-sqlite", "connect", "domain"]),
    ("ingest", &["backend-log", "event", "framework"]),
    ("count", &["backend-views", "framework"]),
    ("store", &["backend-master", "domain", "framework"]),
    ("batch", &["backend-master", "framework"]),
    ("analytics", &["backend-master", "backend-views", "domain", "framework"]),
    ("eventing", &["backend-log", "domain", "event", "framework"]),
    ("forwarder", &["backend-log", "eventing", "framework"]),
    ("serving", &["framework"]),
    ("memory", &["backend-log", "backend-master", "backend-views", "domain", "event"]),
    (
        "lambda-architecture",
        &[
            "analytics",
            "backend-log",
            "batch",
            "count",
            "domain",
            "eventing",
            "framework",
            "ingest",
            "serving",
            "store",
        ],
    ),
];

/// Crates that bring a server, a database or an exporter with them, each with the packages that depend on it.
const HEAVY: [(&str, &[&str]); 9] = [
    ("hyper", &["framework", "lambda-architecture", "serving"]),
    ("opentelemetry-otlp", &["framework"]),
    ("prometheus-client", &["framework"]),
    ("rdkafka", &["backend-log"]),
    ("reqwest", &["forwarder", "lambda-architecture"]),
    ("scylla", &["backend-views"]),
    ("serde-saphyr", &["eventing", "lambda-architecture"]),
    ("sqlx", &["backend-log", "backend-master", "backend-sqlite", "backend-views"]),
    (
        "tokio",
        &[
            "backend-log",
            "backend-master",
            "backend-sqlite",
            "backend-views",
            "connect",
            "eventing",
            "forwarder",
            "framework",
            "lambda-architecture",
            "memory",
            "serving",
        ],
    ),
];

/// What `cargo metadata` says of the workspace's own packages.
pub fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The normal dependencies of each package, without those of its tests.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let metadata = metadata();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let of = |package: &Value| {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let mut names: Vec<_> = dependencies.filter(|d| d["kind"].is_null()).map(name).collect();
        names.sort_unstable();
        (name(package), names)
    };
    metadata["packages"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn dependencies_point_the_way_the_data_flows() {
    let packages = dependencies();
    let mut listed = ARROWS.map(|(name, _)| name);
    listed.sort_unstable();
    assert_eq!(packages.keys().collect::<Vec<_>>(), listed, "a new package must say here what it may name");
    for (name, may) in ARROWS {
        let ours: Vec<_> = packages[name].iter().filter(|d| packages.contains_key(*d)).collect();
        assert_eq!(ours, may, "{name}");
    }
}

#[test]
fn heavy_crates_stay_in_the_packages_that_are_for_them() {
    let packages = dependencies();
    for (heavy, may) in HEAVY {
        let users: Vec<_> = packages
            .iter()
            .filter(|(_, names)| names.iter().any(|n| n == heavy))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(users, may, "{heavy}");
    }
}
