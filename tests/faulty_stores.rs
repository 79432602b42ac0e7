//! Stores that fail, disappear or stop responding while the system runs. The system must recover without a restart.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::{Signal, getuid};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, MySqlConnection};
use uuid::Uuid;

use crate::{
    app::{App, DEADLINE, Options, signal},
    function::{Function, ask_until_ready},
    not_run::{Lacks, not_run},
    proxy::Proxy,
    stores::{Services, Stores, master_url_at, mysql_server},
    wire,
};

/// Maximum time until other processes make progress, whatever a failed process has left in a store.
const GO_ON: Duration = Duration::from_secs(15);

/// A small file system in memory, unmounted when the test ends.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path, megabytes: u32) -> Option<Self> {
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(folder.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, since a child process may take a moment to exit.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_users_and_takes_them_again_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = getuid().is_root().then(|| SmallDisk::mount(folder.path(), 24)).flatten();
    let Some(disk) = disk else { return not_run(Lacks::Root, "a small disk can only be mounted by root") };
    let options = Options { parent: Some(disk.0.clone()), ..Options::default() };
    let mut app = App::start_as(Stores::Embedded, options, |_, manifest| manifest).await;
    let mut users = vec![Uuid::new_v4()];
    app.post_user(users[0], "full").await;
    app.settle().await;

    // The disk is full now: every write fails with ENOSPC.
    let filler = disk.0.join("filler");
    assert!(fs::write(&filler, vec![0; 32 * 1024 * 1024]).is_err());
    let (deadline, mut refused) = (Instant::now() + DEADLINE, 0);
    while refused < 5 {
        assert!(Instant::now() < deadline, "a full disk refuses nobody");
        let id = Uuid::new_v4();
        users.push(id);
        let answer = app.post("/ingress/user", json!({ "id": id, "name": "full" }).to_string()).await;
        match answer.status().as_u16() {
            201 => {}
            503 => refused += 1,
            other => panic!("{other}: {:?}", answer.body()),
        }
    }
    fs::remove_file(filler).unwrap();
    // The same processes accept all users now, including those that were refused.
    for id in &users {
        app.post_user_until_taken(*id, "full").await;
    }
    app.settle().await;
    assert_eq!(app.user_count().await, users.len() as u64);
    let (incremental, full) = (app.tick("").await, app.tick("?full=true").await);
    assert_eq!((&incremental["users"], &full["users"]), (&json!(users.len()), &json!(users.len())));
    assert_eq!(app.stop(), Some(0));
    drop(app);
}

/// A function that takes a file away while a process has it open.
type Damage = fn(&Path);

fn remove(file: &Path) {
    for part in ["", "-wal", "-shm"] {
        let mut name = file.as_os_str().to_owned();
        name.push(part);
        let _ = fs::remove_file(PathBuf::from(name));
    }
}

fn replace_by_nothing(file: &Path) {
    let new = file.with_extension("new");
    fs::write(&new, b"").unwrap();
    fs::rename(new, file).unwrap();
}

fn rename(file: &Path) {
    fs::rename(file, file.with_extension("moved")).unwrap();
}

fn remove_folder(file: &Path) {
    fs::remove_dir_all(file.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn a_data_file_that_vanishes_is_told_and_nothing_is_acknowledged_into_it() {
    let damages: [(&str, Damage); 4] = [
        ("removed", remove),
        ("replaced", replace_by_nothing),
        ("renamed", rename),
        ("folder removed", remove_folder),
    ];
    for (what, damage) in damages {
        let data = tempfile::tempdir().unwrap();
        let log = data.path().join("data/log.db");
        let url = ("LOG_URL", format!("sqlite:{}", log.display()));
        let function = Function::start("ingest", data.path(), &[url]);
        let post = || {
            let user = json!({ "id": Uuid::new_v4(), "name": "a" }).to_string();
            wire::request("POST", "/user", &[("Content-Type", "application/json")], user.as_bytes())
        };
        assert_eq!(wire::ask(function.address, &post()).await.unwrap().status, 201, "{what}");
        damage(&log);
        for _ in 0..10 {
            let answer = wire::ask(function.address, &post()).await.unwrap();
            assert_eq!(answer.status, 503, "{what}: {answer:?}");
            let detail = answer.problem();
            assert!(detail.contains("log.db"), "{what}: {detail}");
        }
        let ready = wire::ask(function.address, &wire::request("GET", "/readyz", &[], b"")).await.unwrap();
        assert_eq!(ready.status, 503, "{what}: {ready:?}");
    }
}

/// An event for `store` whose data is a user.
pub fn event(id: Uuid) -> Vec<u8> {
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/s"),
        ("ce-type", "t"),
        ("Content-Type", "application/json"),
    ];
    let user = json!({ "id": id, "name": "a" }).to_string();
    wire::request("POST", "/", &headers, user.as_bytes())
}

/// Sends an event until the function accepts it. Fails if that takes `limit` or longer.
pub async fn send_within(function: &Function, id: Uuid, limit: Duration) {
    let started = Instant::now();
    loop {
        let status = wire::ask_and_hang_up(function.address, &event(id), limit).await;
        let took = started.elapsed();
        assert!(took < limit, "{id} was not taken for {took:?}: {status:?}");
        if status == Some(204) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends an event to a `store` whose transaction then waits for a row lock. Returns the connection that holds the lock.
pub async fn wait_in_transaction(services: &Services, function: &Function, id: Uuid) -> MySqlConnection {
    let mut lock = MySqlConnection::connect(&services.master_url()).await.unwrap();
    for statement in [
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED".to_owned(),
        "BEGIN".to_owned(),
        format!(
            "INSERT INTO users (id, name, stored_at, stored_by) VALUES (X'{}', 'x', 0, X'{}')",
            id.simple(),
            Uuid::new_v4().simple()
        ),
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut lock).await.unwrap();
    }
    let address = function.address;
    tokio::spawn(async move { wire::ask_and_hang_up(address, &event(id), DEADLINE).await });
    waiting_session(services).await;
    lock
}

/// Waits until a session of the database waits for a lock, and returns the session's id. Such a session runs an
/// insertion that takes longer than 200 ms. InnoDB's own tables of locks are not used: they are not refreshed while a
/// client queries them more often than every 100 ms.
async fn waiting_session(services: &Services) -> u64 {
    let mut watch = MySqlConnection::connect(&services.master_url()).await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let waiting: Option<u64> = sqlx::query_scalar(
            "SELECT CAST(id AS UNSIGNED) FROM information_schema.processlist
             WHERE db = DATABASE() AND info LIKE 'INSERT INTO %' AND time_ms > 200",
        )
        .fetch_optional(&mut watch)
        .await
        .unwrap();
        if let Some(session) = waiting {
            return session;
        }
        assert!(Instant::now() < deadline, "the function never waits for the lock");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn rollback(mut lock: MySqlConnection) {
    sqlx::raw_sql("ROLLBACK").execute(&mut lock).await.unwrap();
    let _ = lock.close().await;
}

pub async fn users(services: &Services) -> i64 {
    let mut server = MySqlConnection::connect(&services.master_url()).await.unwrap();
    let count = sqlx::query_scalar("SELECT CAST(COUNT(*) AS SIGNED) FROM users");
    count.fetch_one(&mut server).await.unwrap()
}

#[tokio::test]
async fn a_store_that_is_stopped_in_its_transaction_holds_up_others_for_seconds_only() {
    let stores = Stores::new();
    let Stores::Services(services) = &stores else {
        return not_run(Lacks::Services, "there are no services here");
    };
    let folder = tempfile::tempdir().unwrap();
    let url = [("MASTER_URL", services.master_url())];
    let [stopped, other] = [(); 2].map(|()| Function::start("store", folder.path(), &url));
    ask_until_ready(other.address, "/readyz").await;
    let id = Uuid::new_v4();
    let lock = wait_in_transaction(services, &stopped, id).await;
    signal(stopped.pid(), Signal::STOP);
    // The server grants the row lock to the transaction of the stopped process.
    rollback(lock).await;
    send_within(&other, id, GO_ON).await;
    signal(stopped.pid(), Signal::CONT);
    send_within(&stopped, id, GO_ON).await;
    assert_eq!(users(services).await, 1);
}

#[tokio::test]
async fn a_store_whose_session_is_killed_before_its_commit_stores_once() {
    let stores = Stores::new();
    let Stores::Services(services) = &stores else { return eprintln!("not run: there are no services here") };
    let folder = tempfile::tempdir().unwrap();
    let store = Function::start("store", folder.path(), &[("MASTER_URL", services.master_url())]);
    ask_until_ready(store.address, "/readyz").await;
    let mut lock = MySqlConnection::connect(&services.master_url()).await.unwrap();
    // The gap locks block insertions into `batch_pending`: the transaction inserts the user's row and then waits.
    for statement in ["BEGIN", "SELECT seq FROM batch_pending FOR UPDATE"] {
        sqlx::raw_sql(statement).execute(&mut lock).await.unwrap();
    }
    let (address, id) = (store.address, Uuid::new_v4());
    let answer = tokio::spawn(async move { wire::ask_and_hang_up(address, &event(id), DEADLINE).await });
    let session = waiting_session(services).await;
    sqlx::raw_sql(AssertSqlSafe(format!("KILL CONNECTION {session}"))).execute(&mut lock).await.unwrap();
    rollback(lock).await;
    assert_eq!(answer.await.unwrap(), Some(204), "the transaction is begun again");
    send_within(&store, id, GO_ON).await;
    assert_eq!(users(services).await, 1);
}

#[tokio::test]
async fn a_store_whose_network_is_cut_holds_up_others_for_seconds_only() {
    let stores = Stores::new();
    let Stores::Services(services) = &stores else {
        return not_run(Lacks::Services, "there are no services here");
    };
    let folder = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&mysql_server(services), Duration::ZERO);
    let far = [("MASTER_URL", master_url_at(services, &proxy.address.to_string()))];
    let near = [("MASTER_URL", services.master_url())];
    let (cut, other) =
        (Function::start("store", folder.path(), &far), Function::start("store", folder.path(), &near));
    ask_until_ready(other.address, "/readyz").await;
    ask_until_ready(cut.address, "/readyz").await;
    let id = Uuid::new_v4();
    let lock = wait_in_transaction(services, &cut, id).await;
    proxy.cut();
    rollback(lock).await;
    send_within(&other, id, GO_ON).await;
    proxy.heal();
    send_within(&cut, id, GO_ON).await;
    assert_eq!(users(services).await, 1);
}

#[tokio::test]
async fn a_count_whose_network_is_cut_holds_up_nobody_and_comes_back() {
    let stores = Stores::new();
    let Stores::Services(services) = &stores else {
        return not_run(Lacks::Services, "there are no services here");
    };
    let folder = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&services.cassandra, Duration::ZERO);
    let far = [("VIEWS_URL", format!("cassandra://{}/{}", proxy.address, services.name))];
    let near = [("VIEWS_URL", services.views_url())];
    let (cut, other) =
        (Function::start("count", folder.path(), &far), Function::start("count", folder.path(), &near));
    ask_until_ready(other.address, "/readyz").await;
    ask_until_ready(cut.address, "/readyz").await;
    let ids: Vec<_> = (0..20).map(|_| Uuid::new_v4()).collect();
    let address = cut.address;
    let under_way = ids.iter().map(|id| {
        let event = event(*id);
        tokio::spawn(async move { wire::ask_and_hang_up(address, &event, DEADLINE).await })
    });
    let under_way: Vec<_> = under_way.collect();
    proxy.cut();
    for id in &ids {
        send_within(&other, *id, GO_ON).await;
    }
    proxy.heal();
    for id in &ids {
        send_within(&cut, *id, GO_ON).await;
    }
    for request in under_way {
        let _ = request.await;
    }
    let counted = wire::ask(other.address, &wire::request("GET", "/user/count", &[], b"")).await.unwrap();
    assert_eq!(counted.json(), json!({ "userCount": ids.len() }));
}
