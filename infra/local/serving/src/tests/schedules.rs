//! Random schedules of requests that wait, are granted a permit, and are cancelled, while replicas go away: no permit is
//! lost and no waiting request is stuck. The schedule is in the test's hands: it polls each future itself.

use std::{future::Future, pin::Pin, sync::Arc, task::Context, time::Instant};

use fastrand::Rng;

use super::{DEADLINE, Fakes, spec};
use crate::{Serving, lease::Lease, pool::Refusal, replica::Replica, replica_set::ReplicaSet};

const SEEDS: u64 = 60;
const STEPS: usize = 120;
/// Maximum number of requests in flight per replica.
const LIMIT: u32 = 2;

type Acquiring = Pin<Box<dyn Future<Output = Result<Lease, Refusal>>>>;

/// What a schedule has in its hands.
struct Schedule {
    set: Arc<ReplicaSet>,
    /// All replicas that were ever ready.
    replicas: Vec<Arc<Replica>>,
    acquiring: Vec<Acquiring>,
    leases: Vec<Lease>,
}

impl Schedule {
    fn acquire(&mut self) {
        let set = self.set.clone();
        self.acquiring.push(Box::pin(async move { Lease::acquire(&set).await }));
        self.poll(self.acquiring.len() - 1);
    }

    /// Polls a waiting request once, without a wake-up: it may have been granted a permit or not.
    fn poll(&mut self, at: usize) {
        let waker = futures_util::task::noop_waker();
        if let std::task::Poll::Ready(granted) =
            self.acquiring[at].as_mut().poll(&mut Context::from_waker(&waker))
        {
            drop(self.acquiring.swap_remove(at));
            let Ok(lease) = granted else { panic!("nothing refuses requests here") };
            self.leases.push(lease);
        }
    }

    fn step(&mut self, rng: &mut Rng) {
        let (acquiring, leases) = (self.acquiring.len(), self.leases.len());
        match rng.u8(..10) {
            0..4 => self.acquire(),
            4 | 5 if acquiring > 0 => self.poll(rng.usize(..acquiring)),
            6 if acquiring > 0 => drop(self.acquiring.swap_remove(rng.usize(..acquiring))),
            7 | 8 if leases > 0 => drop(self.leases.swap_remove(rng.usize(..leases))),
            9 => {
                let mut pool = self.set.pool();
                if let Some(replica) = rng.choice(pool.replicas.clone()) {
                    pool.remove(&replica);
                }
            }
            _ => {}
        }
    }

    /// Remembers new replicas; none has more requests than it may.
    fn check(&mut self, seed: u64) {
        for replica in &self.set.pool().replicas {
            if !self.replicas.iter().any(|known| Arc::ptr_eq(known, replica)) {
                self.replicas.push(replica.clone());
            }
        }
        let in_flight: Vec<_> = self.replicas.iter().map(|replica| replica.in_flight()).collect();
        assert!(in_flight.iter().all(|n| *n <= LIMIT), "seed {seed}: {in_flight:?}");
        let permits = usize::try_from(in_flight.iter().sum::<u32>()).unwrap();
        let most = self.leases.len() + self.acquiring.len();
        assert!((self.leases.len()..=most).contains(&permits), "seed {seed}: {permits} permits");
    }

    /// Returns permits until every waiting request has had one.
    async fn drain(&mut self, seed: u64) {
        let started = Instant::now();
        while !self.acquiring.is_empty() {
            self.leases.clear();
            for at in (0..self.acquiring.len()).rev() {
                self.poll(at);
            }
            // Lets replicas start that take the place of those that went away.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            self.check(seed);
            assert!(started.elapsed() < DEADLINE, "seed {seed}: {} requests are stuck", self.acquiring.len());
        }
        self.leases.clear();
        let left: Vec<_> = self.replicas.iter().map(|replica| replica.in_flight()).collect();
        assert!(left.iter().all(|n| *n == 0), "seed {seed}: permits were lost: {left:?}");
        assert!(self.set.pool().waiting.is_empty(), "seed {seed}: an entry stays in the queue");
    }
}

#[tokio::test]
async fn no_schedule_loses_a_permit_or_leaves_a_request_waiting() {
    for seed in 0..SEEDS {
        let mut rng = Rng::with_seed(seed);
        let spec = spec(LIMIT, &[("max-scale", "2"), ("initial-scale", "2")]);
        let serving = Serving::without_autoscaler(vec![spec], Fakes::default()).unwrap();
        let set = serving.functions["f"].replicas.clone();
        let mut schedule = Schedule { set, replicas: Vec::new(), acquiring: Vec::new(), leases: Vec::new() };
        for _ in 0..STEPS {
            schedule.step(&mut rng);
            schedule.check(seed);
            if rng.u8(..4) == 0 {
                tokio::task::yield_now().await;
                schedule.check(seed);
            }
        }
        schedule.drain(seed).await;
        serving.shutdown().await;
    }
}
