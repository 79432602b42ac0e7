//! Cuts the power while the real program works on a disk that loses unsynced data.

/// In-memory disk that loses unsynced data.
mod disk;
/// The disk as a FUSE file system.
mod mount;

use std::{fs, path::Path, time::Duration};

use fuser::Errno;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use uuid::Uuid;

use self::{
    disk::{Fault, Operation},
    mount::Mount,
};
use crate::{
    app::{App, DEADLINE, Options, signal},
    chaos::agree,
    load::Load,
    not_run::{Lacks, not_run},
    stores::Stores,
};

/// Users of one run, each sent one to three times.
const USERS: usize = 2_000;
/// Default number of power cuts in a run. `POWER_CUTS` overrides it.
const CUTS: usize = 10;

/// The operations that can fail.
const OPERATIONS: [Operation; 3] = [Operation::Open, Operation::Write, Operation::Sync];

/// State of the disk before a power cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    ItWorks,
    /// Some opens, writes or syncs fail.
    ItFails,
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_power_is_cut() {
    outlast(Before::ItWorks).await;
}

/// Linux discards data that it failed to sync, so that a later sync succeeds without it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_power_is_cut_after_the_disk_failed() {
    outlast(Before::ItFails).await;
}

/// Each operation fails with each error: once, three times, and for a while. Afterwards the same processes acknowledge,
/// count and store again.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_works_again_is_used_again_by_the_same_processes() {
    let disk = match Mount::new() {
        Ok(disk) => disk,
        Err(error) => return not_run(Lacks::Fuse, &format!("no file system can be mounted: {error}")),
    };
    let options = Options { parent: Some(disk.path().to_owned()), ..Options::default() };
    let mut app = App::start_as(Stores::Embedded, options, |_, manifest| manifest).await;
    app.post_user(Uuid::new_v4(), "before").await;
    app.settle().await;
    let processes = app.functions_with_pids().await;
    let faults = OPERATIONS.iter().flat_map(|operation| {
        let errors = [Errno::EIO, Errno::ENOSPC].into_iter();
        errors.flat_map(move |error| {
            [1, 3, u32::MAX].map(|times| Fault { operation: *operation, times, error })
        })
    });
    let load = Load::new(USERS, &mut StdRng::seed_from_u64(1), vec![app.address]);
    let clients = load.start();
    let faults: Vec<_> = faults.collect();
    for (n, fault) in faults.iter().enumerate() {
        load.release((n + 1) as f64 / (faults.len() + 1) as f64);
        disk.disk().fault = Some(*fault);
        tokio::time::sleep(Duration::from_millis(200)).await;
        disk.disk().fault = None;
        app.post_user_until_taken(Uuid::new_v4(), "after").await;
    }
    load.release(1.0);
    for client in clients {
        tokio::time::timeout(DEADLINE, client).await.expect("every user is acknowledged in the end").unwrap();
    }
    app.settle().await;
    let after = app.functions_with_pids().await;
    for process in processes {
        assert!(after.contains(&process), "{process:?} was replaced: {after:?}");
    }
    assert_eq!(app.user_count().await, (1 + faults.len() + USERS) as u64);
    assert_eq!(app.tick("?full=true").await["users"], 1 + faults.len() + USERS);
    assert_eq!(app.stop(), Some(0));
}

async fn outlast(before: Before) {
    let mut disk = match Mount::new() {
        Ok(disk) => disk,
        Err(error) => return not_run(Lacks::Fuse, &format!("no file system can be mounted: {error}")),
    };
    let cuts = std::env::var("POWER_CUTS").map_or(CUTS, |cuts| cuts.parse().unwrap());
    let seed = std::env::var("POWER_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("POWER_SEED={seed} POWER_CUTS={cuts}");
    let mut random = StdRng::seed_from_u64(seed);
    let options = Options { parent: Some(disk.path().to_owned()), ..Options::default() };
    let mut app = App::start_as(Stores::Embedded, options, |_, manifest| manifest).await;
    // Files that the test itself has written must survive the power cut.
    sync(disk.path());
    let load = Load::new(USERS, &mut random, vec![app.address]);
    let clients = load.start();
    for cut in 1..=cuts {
        let sent = load.release(cut as f64 / (cuts + 1) as f64);
        let _ = tokio::time::timeout(Duration::from_secs(5), load.until_sent(sent)).await;
        if before == Before::ItFails {
            let operation = OPERATIONS[random.random_range(0..3)];
            let times = [1, 3, u32::MAX][random.random_range(0..3)];
            disk.disk().fault = Some(Fault { operation, times, error: Errno::EIO });
            tokio::time::sleep(Duration::from_millis(random.random_range(20..300))).await;
            disk.disk().fault = None;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
        disk.cut();
        signal(app.pid(), Signal::KILL);
        app.exit_code(DEADLINE).await;
        disk.restore(&mut random);
        app.restart();
        load.moved(0, app.address);
    }
    load.release(1.0);
    for client in clients {
        tokio::time::timeout(DEADLINE, client).await.expect("every user is acknowledged in the end").unwrap();
    }
    let acknowledged = load.acknowledged();
    assert_eq!(acknowledged.len(), USERS);
    agree(&mut app, &acknowledged, seed).await;
}

/// Syncs a folder recursively.
fn sync(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sync(&path),
            // SQLite may have deleted the file in the meantime.
            false => drop(fs::File::open(path).and_then(|file| file.sync_all())),
        }
    }
    fs::File::open(folder).unwrap().sync_all().unwrap();
}
