//! Who may depend on whom: a function's `Cargo.toml` is its diagram.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// All packages of this workspace, and all of them that each may name.
const ARROWS: [(&str, &[&str]); 15] = [
    ("event", &[]),
    ("shared", &["event"]),
    ("backend-sqlite", &["shared"]),
    ("backend-log", &["backend-sqlite", "shared"]),
    ("backend-master", &["backend-sqlite", "shared"]),
    ("backend-views", &["backend-sqlite", "shared"]),
    ("ingest", &["backend-log", "shared"]),
    ("count", &["backend-views", "shared"]),
    ("store", &["backend-master", "shared"]),
    ("batch", &["backend-master", "shared"]),
    ("analytics", &["backend-master", "backend-views", "shared"]),
    ("eventing", &["backend-log", "event", "shared"]),
    ("forwarder", &["backend-log", "eventing", "shared"]),
    ("serving", &["shared"]),
    (
        "lambda-architecture",
        &["analytics", "backend-log", "batch", "count", "eventing", "ingest", "serving", "shared", "store"],
    ),
];

/// Crates that bring a server, a database or an exporter with them, and the packages that may name each.
const HEAVY: [(&str, &[&str]); 9] = [
    ("hyper", &["lambda-architecture", "serving", "shared"]),
    ("opentelemetry-otlp", &["shared"]),
    ("prometheus-client", &["shared"]),
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
            "eventing",
            "forwarder",
            "lambda-architecture",
            "serving",
            "shared",
        ],
    ),
];

/// The dependencies of each package, those of its tests left out.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
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
