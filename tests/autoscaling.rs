//! Scaling from zero to many replicas and back to zero, as the manifests' annotations configure it.

use uuid::Uuid;

use crate::{app::App, stores::Stores};

#[tokio::test]
async fn nothing_runs_until_something_calls_and_nothing_afterwards() {
    // The project's manifests, with a window shorter than a minute.
    let mut app = App::start_with(Stores::new(), |path, manifest| {
        let anchor = "autoscaling.knative.dev/min-scale: \"0\"";
        assert_eq!(manifest.contains(anchor), path.starts_with("functions/"), "{manifest}");
        if manifest.contains("autoscaling.knative.dev/window") {
            return manifest;
        }
        manifest.replace(anchor, &format!("{anchor}\n        autoscaling.knative.dev/window: 6s"))
    })
    .await;
    assert_eq!(app.function("ingest").await["replicas"].as_array().unwrap().len(), 0);

    app.post_user(Uuid::new_v4(), "someone").await;
    let ingest = app.function("ingest").await;
    assert_eq!(ingest["replicas"].as_array().unwrap().len(), 1);
    assert_eq!(ingest["coldStarts"].as_array().unwrap().len(), 1);
    app.eventually("all are back to zero", async |app| {
        let status = app.get("/status").await;
        let functions = status["functions"].as_array().unwrap();
        functions
            .iter()
            .filter(|f| f["name"] != "batch")
            .all(|f| f["replicas"].as_array().unwrap().is_empty())
    })
    .await;
    app.post_user(Uuid::new_v4(), "another").await;
    app.eventually("a function at zero starts again", async |app| app.user_count().await == 2).await;
}

#[tokio::test]
async fn a_burst_raises_more_than_one_ingest_and_ends_exact() {
    let mut app = App::start().await;
    let burst = app.command(&["burst", "--users", "20000", "--concurrency", "512", "--repeats", "2"]);
    let (out, err) = (String::from_utf8_lossy(&burst.stdout), String::from_utf8_lossy(&burst.stderr));
    assert!(burst.status.success(), "{out}{err}");
    let replicas = out.lines().find(|line| line.starts_with("replicas at most")).unwrap();
    let ingest = replicas.split("ingest ").nth(1).unwrap().split(',').next().unwrap();
    assert!(ingest.parse::<u32>().unwrap() > 1, "{out}");
    app.settle().await;
    assert_eq!(app.user_count().await, 20_000);
}
