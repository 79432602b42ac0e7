//! The power is cut while the real program works on a disk that loses what was not synced.

/// The disk.
mod disk;
/// The disk as a file system.
mod mount;

use std::{fs, path::Path, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::process::Signal;

use self::{disk::Operation, mount::Mount};
use crate::{
    app::{App, DEADLINE, Options, signal},
    chaos::agree,
    load::Load,
    not_run::{Lacks, not_run},
    stores::Stores,
};

/// Users of one run, each sent one to three times.
const USERS: usize = 2_000;
/// How often the power is cut in a run, unless `POWER_CUTS` says so.
const CUTS: usize = 10;

/// What the disk does before the power goes.
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

/// Linux forgets what it could not sync, so that a later sync succeeds without it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_power_is_cut_after_the_disk_failed() {
    outlast(Before::ItFails).await;
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
    // What the test itself has written there is safe.
    sync(disk.path());
    let load = Load::new(USERS, &mut random, vec![app.address]);
    let clients = load.start();
    for cut in 1..=cuts {
        let sent = load.release(cut as f64 / (cuts + 1) as f64);
        let _ = tokio::time::timeout(Duration::from_secs(5), load.until_sent(sent)).await;
        if before == Before::ItFails {
            let operation = [Operation::Open, Operation::Write, Operation::Sync][random.random_range(0..3)];
            disk.disk().fault = Some((operation, [1, 3, u32::MAX][random.random_range(0..3)]));
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

/// Syncs a folder and all that is in it.
fn sync(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sync(&path),
            // A file of SQLite may have gone in the meantime.
            false => drop(fs::File::open(path).and_then(|file| file.sync_all())),
        }
    }
    fs::File::open(folder).unwrap().sync_all().unwrap();
}
