//! Disks that fail to write or to sync while a function runs. The function must recover when the disk does.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;
use uuid::Uuid;

use crate::{
    app::DEADLINE,
    faulty_stores::{event, send_within},
    function::{Function, ask_until_ready},
    wire,
};

/// Maximum time until a function accepts events again after the disk has recovered.
const GO_ON: Duration = Duration::from_secs(15);
/// Disk faults, each with the letter that selects it in the library below.
const FAULTS: [(&str, &str); 3] =
    [("a failing sync", "s"), ("a failing write", "w"), ("a disk without room", "f")];

/// A library that is preloaded before libc. Its calls fail while the flag file exists.
struct FailingDisk {
    library: PathBuf,
    flag: PathBuf,
}

impl FailingDisk {
    fn build(folder: &Path) -> Self {
        let library = folder.join("failing_disk.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/failing_disk.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(source)
            .arg("-ldl")
            .status();
        assert!(built.unwrap().success());
        Self { library, flag: folder.join("fault") }
    }

    fn variables(&self) -> [(&'static str, String); 2] {
        [("LD_PRELOAD", self.library.display().to_string()), ("DISK_FAULT", self.flag.display().to_string())]
    }

    fn fail(&self, how: &str) {
        let new = self.flag.with_extension("new");
        fs::write(&new, how).unwrap();
        fs::rename(new, &self.flag).unwrap();
    }

    fn heal(&self) {
        fs::remove_file(&self.flag).unwrap();
    }
}

/// Sends new events while the function's disk fails, each several times, and repeats them afterwards until they are
/// accepted. Returns the total number of events.
async fn outlast(function: &Function, disk: &FailingDisk, (what, how): (&str, &str)) -> usize {
    let mut ids = vec![Uuid::new_v4()];
    send_within(function, ids[0], GO_ON).await;
    disk.fail(how);
    for _ in 0..4 {
        let id = Uuid::new_v4();
        ids.push(id);
        // An event that may not be on the disk must not be acknowledged, and neither may any repetition of it.
        for time in 0..4 {
            let answer = wire::ask(function.address, &event(id)).await.unwrap();
            assert_eq!(answer.status, 503, "{what}, time {time}: {answer:?}");
        }
    }
    disk.heal();
    let healed = Instant::now();
    for id in &ids {
        send_within(function, *id, GO_ON).await;
    }
    println!("{what}: all {} events were taken {:?} after its end", ids.len(), healed.elapsed());
    ids.len()
}

#[tokio::test]
async fn a_store_and_a_count_outlast_a_failing_disk() {
    for fault in FAULTS {
        let folder = tempfile::tempdir().unwrap();
        let disk = FailingDisk::build(folder.path());
        let [store, count] =
            ["store", "count"].map(|name| Function::start(name, folder.path(), &disk.variables()));
        let stored = outlast(&store, &disk, fault).await;
        let counted = outlast(&count, &disk, fault).await;
        // Kills both, so that only the data in the files remains.
        drop((store, count));
        let [batch, count] = ["batch", "count"].map(|name| Function::start(name, folder.path(), &[]));
        ask_until_ready(batch.address, "/readyz").await;
        let tick = wire::ask(batch.address, &event(Uuid::new_v4())).await.unwrap();
        assert_eq!(tick.json()["users"], json!(stored), "{fault:?}: {tick:?}");
        let count = wire::ask(count.address, &wire::request("GET", "/user/count", &[], b"")).await.unwrap();
        assert_eq!(count.json(), json!({ "userCount": counted }), "{fault:?}");
    }
}

#[tokio::test]
async fn an_ingest_outlasts_a_failing_disk() {
    for (what, how) in FAULTS {
        let folder = tempfile::tempdir().unwrap();
        let disk = FailingDisk::build(folder.path());
        let ingest = Function::start("ingest", folder.path(), &disk.variables());
        let post = async || {
            let user = json!({ "id": Uuid::new_v4(), "name": "a" }).to_string();
            let json = [("Content-Type", "application/json")];
            let request = wire::request("POST", "/user", &json, user.as_bytes());
            wire::ask(ingest.address, &request).await.unwrap()
        };
        assert_eq!(post().await.status, 201, "{what}");
        disk.fail(how);
        for _ in 0..10 {
            let answer = post().await;
            assert_eq!(answer.status, 503, "{what}: {answer:?}");
        }
        disk.heal();
        let deadline = Instant::now() + DEADLINE;
        while post().await.status != 201 {
            assert!(Instant::now() < deadline, "{what}: never taken again");
        }
    }
}
