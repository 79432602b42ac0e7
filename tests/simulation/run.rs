//! One run: clients post users while everything fails; then nothing fails any more, and all must agree.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use eventing::dead_letters::{DeadLetterError, DeadLetters};
use http::Request;
use memory::{Defects, MemoryLog, MemoryMaster, MemoryViews};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::{
    checks::Checks,
    stores::commit_delay,
    system::System,
    world::{Coverage, Defect, Fault, Seam, World, lock},
};

const CLIENTS: usize = 3;
/// Posts of each client; a run without a violation acknowledges all.
const POSTS: usize = 12;
pub const POSTS_PER_RUN: u64 = (CLIENTS * POSTS) as u64;
const PARTITIONS: i32 = 4;
/// How long all may take to agree once nothing fails any more, in simulated time.
const QUIET_WITHIN: Duration = Duration::from_secs(300);
/// Above the latest effect of a call that was given up.
const SETTLED: Duration = Duration::from_secs(25);
const RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What came of a run.
pub struct Outcome {
    pub violation: Option<String>,
    pub trace: Vec<String>,
    pub coverage: Coverage,
}

/// Runs one seed on a runtime of its own, whose clock only moves when all tasks wait.
pub fn run(seed: u64, defect: Option<Defect>) -> Outcome {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = Arc::new(World::new(seed, defect));
        simulate(&world).await;
        Outcome { violation: world.violation(), trace: world.trace(), coverage: world.coverage() }
    })
}

async fn simulate(world: &Arc<World>) {
    let clock_of = world.clone();
    let clock: memory::Clock = Arc::new(move || clock_of.now_ms());
    let defects = Defects {
        longest_by_bytes: world.has(Defect::LongestNameByBytes),
        skips_late_commits: world.has(Defect::TickSkipsLateCommits),
        keeps_locks: world.has(Defect::LeavesLocksBehind),
    };
    let master =
        MemoryMaster::new(clock.clone()).with_commit_delay(commit_delay(world)).with_defects(defects);
    let checks = Arc::new(Checks {
        log: MemoryLog::new(PARTITIONS, clock.clone()),
        views: MemoryViews::new(clock, RETENTION),
        master,
        topic: "user".to_owned(),
        dead_letters: "user-dead-letter".to_owned(),
    });
    let system = System::start(world, &checks);
    let clients =
        Arc::new(Clients { system: system.clone(), used: Mutex::default(), acknowledged: Mutex::default() });
    tokio::spawn(watch(system.clone()));
    let posting: Vec<_> = (0..CLIENTS).map(|n| tokio::spawn(clients.clone().post_all(n))).collect();
    sleep(world.within_ms(8_000)).await;
    let replaying = tokio::spawn(system.clone().replay());
    for client in posting {
        client.await.unwrap();
    }
    world.calm_down();
    world.log("run", format_args!("nothing fails any more"));
    let agree = async {
        sleep(SETTLED).await;
        while !(checks.is_quiet() && system.is_up() && replaying.is_finished()) {
            sleep(Duration::from_millis(500)).await;
        }
    };
    if timeout(QUIET_WITHIN, agree).await.is_err() {
        let committed = ["count", "store"].map(|group| checks.log.committed(&checks.topic, group));
        return world
            .violate(format!("events are unfinished after {QUIET_WITHIN:?}; committed: {committed:?}"));
    }
    checks.at_the_end(world, &lock(&clients.acknowledged));
    batch_agrees(&system).await;
    dead_letters_can_be_repaired(&system).await;
}

/// The batch layer after a tick, after a recomputation, and what `analytics` answers.
async fn batch_agrees(system: &Arc<System>) {
    let System { world, checks, .. } = &**system;
    let users = checks.master.users().len();
    for query in ["/", "/?full=true"] {
        let tick = Request::post(query).header("ce-specversion", "1.0").header("ce-id", "1");
        let tick = tick.header("ce-source", "/run").header("ce-type", "tick").body(Bytes::new()).unwrap();
        let tick = system.call("batch", tick).await.map(|answer| json_of(&answer.into_body()));
        let tick = tick.unwrap_or_default();
        let longest = tick["longestNameUser"]["name"].as_str().map_or(0, |name| name.chars().count());
        if tick["users"] != users || longest != checks.longest() {
            world
                .violate(format!("{query}: {tick}, but {users} users, the longest has {}", checks.longest()));
        }
    }
    let Some(analytics) = analytics(system).await else {
        return world.violate("analytics does not answer".to_owned());
    };
    if analytics != (users as u64, checks.longest()) {
        world.violate(format!("analytics says {analytics:?}, not {users} and {}", checks.longest()));
    }
}

/// Every dead letter is refused again, for the same reason, and is gone once it is dropped.
async fn dead_letters_can_be_repaired(system: &Arc<System>) {
    let System { world, checks, .. } = &**system;
    let (log, sink) = system.operator();
    let functions = BTreeSet::from(["count".to_owned(), "store".to_owned()]);
    let letters = DeadLetters::read(&*log, &checks.dead_letters).await.unwrap();
    for letter in &letters {
        match letter.replay(&*log, &checks.dead_letters, &sink, &functions).await {
            Err(
                DeadLetterError::Failed(_) | DeadLetterError::Undecodable(_) | DeadLetterError::Unsendable(_),
            ) => {}
            other => world.violate(format!("a replay of {} ended with {other:?}", letter.id)),
        }
        letter.discard(&*log, &checks.dead_letters).await.unwrap();
    }
    let left = DeadLetters::read(&*log, &checks.dead_letters).await.unwrap();
    if !left.is_empty() {
        world.violate(format!("{} of {} dropped dead letters are still listed", left.len(), letters.len()));
    }
}

/// The last count and the length of the longest name, if `analytics` answers.
async fn analytics(system: &Arc<System>) -> Option<(u64, usize)> {
    let request = Request::get("/analytics").body(Bytes::new()).unwrap();
    let answer = system.call("analytics", request).await?;
    if answer.status() != 200 {
        return None;
    }
    let answer = json_of(&answer.into_body());
    let count =
        answer["userCount"].as_array()?.last().map_or(0, |point| point["userCount"].as_u64().unwrap());
    let longest = answer["longestNameUser"]["name"].as_str().map_or(0, |name| name.chars().count());
    Some((count, longest))
}

/// Asks `analytics` all the time: what it says never falls.
async fn watch(system: Arc<System>) {
    let mut before = (0, 0);
    loop {
        sleep(system.world.within_ms(600)).await;
        let Some(now) = analytics(&system).await else { continue };
        if now.0 < before.0 || now.1 < before.1 {
            system.world.violate(format!("analytics fell from {before:?} to {now:?}"));
        }
        before = now;
    }
}

fn json_of(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

/// The clients of a run.
struct Clients {
    system: Arc<System>,
    used: Mutex<Vec<(Uuid, String)>>,
    acknowledged: Mutex<BTreeSet<(Uuid, String)>>,
}

impl Clients {
    async fn post_all(self: Arc<Self>, client: usize) {
        let world = &self.system.world;
        for _ in 0..POSTS {
            sleep(world.within_ms(900)).await;
            let users: Vec<_> = (0..1 + world.below(3)).map(|_| self.user()).collect();
            self.post_until_acknowledged(client, &users).await;
        }
    }

    /// A new user, one that was posted already, or another name for an id that was.
    fn user(&self) -> (Uuid, String) {
        let world = &self.system.world;
        let letters = ["a", "é", "語", "😀"][world.below(4)];
        let name = letters.repeat(1 + world.below(20));
        let mut used = lock(&self.used);
        let user = match world.below(10) {
            0 if !used.is_empty() => used[world.below(used.len())].clone(),
            1 | 2 if !used.is_empty() => (used[world.below(used.len())].0, name),
            _ => (uuid(world), name),
        };
        used.push(user.clone());
        user
    }

    /// Posts users as one batch of events, or one user as JSON, until the answer says that they are taken.
    async fn post_until_acknowledged(&self, client: usize, users: &[(Uuid, String)]) {
        let world = &self.system.world;
        let name = format!("client-{client}");
        let (path, media_type, body) = match users {
            [(id, name)] => ("/user", "application/json", json!({ "id": id, "name": name })),
            users => (
                "/",
                "application/cloudevents-batch+json",
                users.iter().map(|user| event(world, user)).collect(),
            ),
        };
        loop {
            let request = Request::post(path).header("content-type", media_type);
            let call = self.system.call("ingest", request.body(Bytes::from(body.to_string())).unwrap());
            let patience = if world.per_mille(200) { 5 } else { 60_000 };
            match timeout(world.within_ms(patience), call).await {
                Ok(Some(answer)) if answer.status().is_success() => break,
                Ok(Some(answer)) if answer.status().is_client_error() && answer.status() != 429 => {
                    return world.violate(format!("{body} was refused: {answer:?}"));
                }
                Ok(_) => {}
                Err(_) => world.cover(Seam::Client, Fault::GivenUp),
            }
            sleep(world.within_ms(400)).await;
        }
        world.log(&name, format_args!("{body} is acknowledged"));
        lock(&self.acknowledged).extend(users.iter().cloned());
    }
}

fn event(world: &World, (id, name): &(Uuid, String)) -> Value {
    json!({
        "specversion": "1.0", "id": uuid(world), "source": "/simulation", "type": "user", "data": { "id": id, "name": name },
    })
}

fn uuid(world: &World) -> Uuid {
    uuid::Builder::from_random_bytes(world.bytes16().to_be_bytes()).into_uuid()
}
