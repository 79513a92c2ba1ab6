//! The store in memory with 100,000 functions, against the same with 100.
//!
//! What is compared is the store's own work: all operations go round in 100 keys, spread evenly over all functions.
//! Where each read goes to another of 100,000 functions, what dominates is memory that is in no cache of the processor.
//! That is shown beside, as the last line.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::cell::Cell;
use std::time::{Duration, Instant};

use function_gateway_benches::{caller, median, noop_spec, parse, ratio};
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    DriverRef, Function, FunctionFilter, FunctionId, FunctionKey, FunctionStore, Generation, PageRequest, Revision,
    RevisionReason, TenantId, Timestamp,
};

const SMALL: usize = 100;
const LARGE: usize = 100_000;
const KEYS: usize = 100;
const PAGE: usize = 100;
const ROUNDS: usize = 101;
/// Has no divisor in common with the number of functions, so going on by it meets each of them.
const STRIDE: usize = 7919;
/// How often a round goes round in the keys, or reads a page.
const REPEATS: u32 = 20;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (small, large) = (Filled::new(SMALL).await, Filled::new(LARGE).await);
        println!("medians of {ROUNDS} rounds in turns, {KEYS} keys spread over all\n");
        println!("operation            {SMALL:>9}   {LARGE:>9}   ratio");
        let [first, middle, last] = [0, LARGE / PAGE / 2, LARGE / PAGE - 1];
        let pages = [large.page(first).await, large.page(middle).await, large.page(last).await];
        let only = small.page(0).await;

        compare("get", async || small.get().await, async || large.get().await).await;
        compare("create", async || small.create().await, async || large.create().await).await;
        for (name, page) in ["page of 100, first", "page of 100, middle", "page of 100, last"].into_iter().zip(&pages) {
            compare(name, async || small.list(&only).await, async || large.list(page).await).await;
        }
        compare("get, always another", async || small.get_another().await, async || large.get_another().await).await;
    });
}

async fn compare(name: &str, small: impl AsyncFn() -> Duration, large: impl AsyncFn() -> Duration) {
    let (mut base, mut times) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        base.push(small().await);
        times.push(large().await);
    }
    let ratio = ratio(&times, &base);
    let [base, times] = [base, times].map(|times| median(times).as_nanos());
    println!("{name:<20} {base:>6} ns   {times:>6} ns   {ratio:>5.2}");
}

/// A store with some functions, all of one tenant.
struct Filled {
    store: MemoryStore,
    tenant: TenantId,
    keys: Vec<FunctionKey>,
    /// Functions that are not in it, their names spread over all.
    others: Vec<(Function, Revision)>,
    count: usize,
    /// Where the next round of reading other functions begins.
    next: Cell<usize>,
}

impl Filled {
    async fn new(count: usize) -> Self {
        let store = MemoryStore::new(parse("bench"));
        for number in 0..count {
            let (function, revision) = make(&format!("function-{number:06}"));
            store.create(&function, &revision).await.unwrap();
        }
        let chosen = || (0..KEYS).map(|index| index * count / KEYS);
        let keys = chosen().map(key).collect();
        let others = chosen().map(|number| make(&format!("function-{number:06}-other"))).collect();
        Self { store, tenant: tenant(), keys, others, count, next: Cell::new(0) }
    }

    async fn get_another(&self) -> Duration {
        let from = self.next.replace(self.next.get() + KEYS);
        // Made here, so that the keys themselves are in the caches, as those of a call are.
        let keys: Vec<_> = (from..from + KEYS).map(|index| key(index * STRIDE % self.count)).collect();
        let start = Instant::now();
        for key in &keys {
            std::hint::black_box(self.store.get(key).await.unwrap().unwrap());
        }
        start.elapsed() / KEYS as u32
    }

    async fn get(&self) -> Duration {
        let start = Instant::now();
        for _ in 0..REPEATS {
            for key in &self.keys {
                std::hint::black_box(self.store.get(key).await.unwrap().unwrap());
            }
        }
        start.elapsed() / REPEATS / KEYS as u32
    }

    /// The time of creating; what was created is deleted again outside of it.
    async fn create(&self) -> Duration {
        let start = Instant::now();
        for (function, revision) in &self.others {
            self.store.create(function, revision).await.unwrap();
        }
        let took = start.elapsed() / KEYS as u32;
        for (function, _) in &self.others {
            let lease = self.store.acquire_lease(&function.key, Duration::from_secs(60)).await.unwrap().unwrap();
            self.store.delete(&lease, function.version).await.unwrap();
        }
        took
    }

    async fn page(&self, number: usize) -> PageRequest {
        let mut request = PageRequest::first(PAGE);
        for _ in 0..number {
            let page = self.store.list(&self.tenant, &FunctionFilter::all(), &request).await.unwrap();
            request = PageRequest::first(PAGE).after(page.next.unwrap());
        }
        request
    }

    async fn list(&self, request: &PageRequest) -> Duration {
        let filter = FunctionFilter::all();
        let start = Instant::now();
        for _ in 0..REPEATS {
            let page = self.store.list(&self.tenant, &filter, request).await.unwrap();
            assert_eq!(page.items.len(), PAGE);
        }
        start.elapsed() / REPEATS
    }
}

fn tenant() -> TenantId {
    caller().tenant().clone()
}

fn key(number: usize) -> FunctionKey {
    FunctionKey::new(tenant(), parse(&format!("function-{number:06}")))
}

fn make(name: &str) -> (Function, Revision) {
    let key = FunctionKey::new(tenant(), parse(name));
    let (id, created) = (FunctionId::generate(), (Timestamp::now(), caller().principal().id.clone()));
    let revision = Revision::new(key, id, Generation::FIRST, noop_spec(), created, RevisionReason::Created);
    let target = DriverRef::plain(&parse("bench"), &revision);
    (Function::new(&revision, target), revision)
}
