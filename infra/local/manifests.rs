//! Finds the manifests and makes of the functions' what the autoscaler and the processes need.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use eventing::{arrows::Arrows, manifest::Service};
use serving::FunctionSpec;

/// How long a request may take where the manifest does not say (`revision-timeout-seconds`).
const TIMEOUT_S: u32 = 300;

/// Reads the manifests of these files and folders, or of the project's own folders when there are none.
pub(crate) fn read(paths: &[PathBuf]) -> anyhow::Result<Arrows> {
    let files = if paths.is_empty() { default_files()? } else { given_files(paths)? };
    let mut texts = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        texts.push((file.display().to_string(), text));
    }
    let arrows = Arrows::read(texts.iter().map(|(file, text)| (file.as_str(), text.as_str())))?;
    if arrows.services.is_empty() {
        bail!("no function is described here; run this from the project's folder or give --manifests");
    }
    Ok(arrows)
}

fn default_files() -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in folder(Path::new("functions")).unwrap_or_default() {
        let service = folder.join("service.yaml");
        if service.exists() {
            files.push(service);
        }
    }
    files.extend(
        folder(Path::new("eventing")).unwrap_or_default().into_iter().filter(|path| is_manifest(path)),
    );
    Ok(files)
}

fn given_files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let inside = folder(path).with_context(|| format!("cannot read {}", path.display()))?;
            files.extend(inside.into_iter().filter(|path| is_manifest(path)));
        } else {
            files.push(path.clone());
        }
    }
    Ok(files)
}

/// What a folder holds, in order.
fn folder(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut inside = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    inside.sort();
    Ok(inside)
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

/// The functions as they are to be run.
pub(crate) fn specs(arrows: &Arrows) -> anyhow::Result<Vec<FunctionSpec>> {
    arrows.services.iter().map(spec).collect()
}

fn spec(service: &Service) -> anyhow::Result<FunctionSpec> {
    let name = service.metadata.name.clone();
    let revision = &service.spec.template.spec;
    let [container] = revision.containers.as_slice() else {
        bail!("the Service {name} must have exactly one container");
    };
    let env = container.env.iter().filter_map(|var| Some((var.name.clone(), var.value.clone()?)));
    Ok(FunctionSpec {
        container_concurrency: revision.container_concurrency,
        timeout: Duration::from_secs(revision.timeout_seconds.unwrap_or(TIMEOUT_S).into()),
        annotations: service.annotations().clone(),
        env: env.collect(),
        name,
    })
}
