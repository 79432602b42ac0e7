//! Finds the manifests and converts Services to the specs that the autoscaler and the processes need.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::bail;
use eventing::{event_sources::Resources, files, manifest::Service};
use serde_json::Value;
use serving::{FunctionSpec, LivenessProbe};

/// Time limit of a request if the manifest has none (`revision-timeout-seconds`).
const TIMEOUT_S: u32 = 300;
/// Label of the functions that Knative makes reachable from inside of the cluster only, by the value `cluster-local`.
const VISIBILITY: &str = "networking.knative.dev/visibility";

/// Reads the manifests of these files and folders, or of the project's own folders if `paths` is empty.
pub(crate) fn read(paths: &[PathBuf]) -> anyhow::Result<Resources> {
    let texts = if paths.is_empty() { files::read(&own_paths()) } else { files::read(paths) }?;
    let arrows = Resources::read(texts.iter().map(|(file, text)| (file.as_str(), text.as_str())))?;
    if arrows.services.is_empty() {
        bail!("no function is described here; run this from the project's folder or give --manifests");
    }
    Ok(arrows)
}

fn own_paths() -> Vec<PathBuf> {
    let functions = files::folder(Path::new("functions")).unwrap_or_default().into_iter();
    let services = functions.map(|folder| folder.join("service.yaml")).filter(|service| service.exists());
    services.chain(Some(PathBuf::from("eventing")).filter(|folder| folder.exists())).collect()
}

/// Converts the Services to function specs.
pub(crate) fn specs(arrows: &Resources) -> anyhow::Result<Vec<FunctionSpec>> {
    arrows.services.iter().map(spec).collect()
}

/// Functions that only event sources may reach.
pub(crate) fn internal(arrows: &Resources) -> impl Iterator<Item = String> {
    let is_internal =
        |service: &&Service| service.metadata.labels.get(VISIBILITY).is_some_and(|v| v == "cluster-local");
    arrows.services.iter().filter(is_internal).map(|service| service.metadata.name.clone())
}

fn spec(service: &Service) -> anyhow::Result<FunctionSpec> {
    let name = service.metadata.name.clone();
    let revision = &service.spec.template.spec;
    let [container] = revision.containers.as_slice() else {
        bail!("the Service {name} must have exactly one container");
    };
    let env = container.env.iter().filter_map(|var| Some((var.name.clone(), var.value.clone()?)));
    let keys = container.env.iter().filter(|var| var.value_from.is_some()).map(|var| var.name.clone());
    Ok(FunctionSpec {
        container_concurrency: revision.container_concurrency,
        timeout: Duration::from_secs(revision.timeout_seconds.unwrap_or(TIMEOUT_S).into()),
        annotations: service.annotations().clone(),
        env: env.collect(),
        keys: keys.collect(),
        liveness: liveness(container.liveness_probe.as_ref()),
        ..FunctionSpec::named(name)
    })
}

/// The container's `livenessProbe`; fields that it leaves out have the runtime's defaults.
fn liveness(probe: Option<&Value>) -> LivenessProbe {
    let default = LivenessProbe::default();
    let Some(probe) = probe else { return default };
    let number = |key: &str| probe[key].as_u64().filter(|n| *n > 0);
    LivenessProbe {
        path: probe["httpGet"]["path"].as_str().and_then(|path| path.parse().ok()).unwrap_or(default.path),
        period: number("periodSeconds").map_or(default.period, Duration::from_secs),
        timeout: number("timeoutSeconds").map_or(default.timeout, Duration::from_secs),
        failure_threshold: number("failureThreshold")
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(default.failure_threshold),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_liveness_probe_is_taken_from_the_container() {
        let probe =
            serde_json::json!({ "httpGet": { "path": "/live" }, "periodSeconds": 10, "failureThreshold": 5 });
        let liveness = liveness(Some(&probe));
        assert_eq!((liveness.path.path(), liveness.failure_threshold), ("/live", 5));
        assert_eq!((liveness.period.as_secs(), liveness.timeout), (10, LivenessProbe::default().timeout));
        assert_eq!(super::liveness(None), LivenessProbe::default());
    }
}
