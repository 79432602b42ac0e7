//! Who may depend on whom: a function's `Cargo.toml` is its diagram.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// Packages of this workspace, and all of it that each may name.
const ARROWS: [(&str, &[&str]); 10] = [
    ("event", &[]),
    ("shared", &["event"]),
    ("ingest", &["backend-log", "shared"]),
    ("count", &["backend-views", "shared"]),
    ("store", &["backend-master", "shared"]),
    ("batch", &["backend-master", "shared"]),
    ("analytics", &["backend-master", "backend-views", "shared"]),
    ("eventing", &["backend-log", "event", "shared"]),
    ("forwarder", &["backend-log", "eventing", "shared"]),
    ("serving", &["shared"]),
];

#[test]
fn dependencies_point_the_way_the_data_flows() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let named: BTreeMap<_, _> = packages.iter().map(|p| (p["name"].as_str().unwrap(), p)).collect();
    for (name, may) in ARROWS {
        let dependencies = named[name]["dependencies"].as_array().unwrap();
        let mut ours: Vec<_> = dependencies
            .iter()
            .filter(|d| d["kind"].is_null())
            .map(|d| d["name"].as_str().unwrap())
            .filter(|d| named.contains_key(d))
            .collect();
        ours.sort_unstable();
        assert_eq!(ours, may, "{name}");
    }
}
