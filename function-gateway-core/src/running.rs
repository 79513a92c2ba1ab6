//! The calls that run in this process and whose log can be read meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::{CallState, InvocationId, PrincipalId, Revision, TenantId};

/// The calls that run, by their ids. Clones are handles to the same list.
///
/// One lock is enough: it is held for a look-up, twice in a call, and only of calls whose driver tells their log.
#[derive(Clone, Default)]
pub(crate) struct RunningCalls(Arc<Shared>);

#[derive(Default)]
struct Shared {
    list: Mutex<List>,
    /// Wakes those who wait for the next attempt of something that is queued.
    entered: Notify,
}

#[derive(Default)]
struct List {
    /// A caller may bring an id twice, so the id alone names no call.
    calls: BTreeMap<(InvocationId, u64), RunningCall>,
    next: u64,
}

/// A call that runs.
#[derive(Clone)]
pub(crate) struct RunningCall {
    /// The revision that it was routed to.
    pub(crate) revision: Arc<Revision>,
    pub(crate) state: Arc<CallState>,
    /// Who submitted it, where somebody did.
    pub(crate) submitter: Option<PrincipalId>,
}

impl RunningCalls {
    /// Lists a call for as long as what it gives is held.
    pub(crate) fn enter(
        &self,
        revision: &Arc<Revision>,
        state: &Arc<CallState>,
        submitter: Option<PrincipalId>,
    ) -> Running {
        let is_queued = submitter.is_some();
        let call = RunningCall { revision: Arc::clone(revision), state: Arc::clone(state), submitter };
        let mut list = self.list();
        let key = (state.id, list.next);
        list.next += 1;
        list.calls.insert(key, call);
        drop(list);
        if is_queued {
            self.0.entered.notify_waiters();
        }
        Running { calls: self.clone(), key, state: Arc::clone(state) }
    }

    /// A tenant's call of an id, the one that came last.
    pub(crate) fn find(&self, tenant: &TenantId, id: InvocationId) -> Option<RunningCall> {
        let list = self.list();
        let mut same_id = list.calls.range((id, 0)..=(id, u64::MAX)).rev().map(|(_, call)| call);
        same_id.find(|call| call.revision.key.tenant == *tenant).cloned()
    }

    /// Waits until one is listed that was submitted.
    pub(crate) fn entered(&self) -> Notified<'_> {
        self.0.entered.notified()
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RunningCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RunningCalls").field(&self.list().calls.len()).finish()
    }
}

/// Keeps a call on the list. Dropped at the end of the call, it closes the call's log.
pub(crate) struct Running {
    calls: RunningCalls,
    key: (InvocationId, u64),
    state: Arc<CallState>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Before it leaves the list, so that nobody finds a call here that has ended and whose log goes on.
        let _ = self.state.close_logs();
        let left = self.calls.list().calls.remove(&self.key);
        // Freed outside of the lock.
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CustomWorkload, FunctionId, FunctionKey, FunctionSpec, Generation, RevisionReason, Timestamp};

    fn revision(tenant: &str) -> Arc<Revision> {
        let key = FunctionKey::new(tenant.parse().unwrap(), "f".parse().unwrap());
        let spec = FunctionSpec::new("local".parse().unwrap(), CustomWorkload::new("x", serde_json::Value::Null));
        let ada: PrincipalId = "ada".parse().unwrap();
        let created = (Timestamp::now(), ada);
        Arc::new(Revision::new(key, FunctionId::generate(), Generation::FIRST, spec, created, RevisionReason::Created))
    }

    fn call(id: InvocationId) -> Arc<CallState> {
        Arc::new(CallState::new(id, Timestamp::now(), 100))
    }

    #[test]
    fn calls_of_one_id_are_told_apart() {
        let calls = RunningCalls::default();
        let id = InvocationId::generate();
        let (acme, other) = (revision("acme"), revision("other"));
        let [first, second, foreign] = [call(id), call(id), call(id)];
        let found = |tenant: &Arc<Revision>| calls.find(&tenant.key.tenant, id).map(|call| call.state);
        let is = |state: Option<Arc<CallState>>, expected: &Arc<CallState>| {
            assert!(Arc::ptr_eq(&state.unwrap(), expected));
        };

        let running = [(&acme, &first), (&acme, &second), (&other, &foreign)];
        let running = running.map(|(revision, state)| calls.enter(revision, state, None));
        let _neighbour = calls.enter(&acme, &call(InvocationId::generate()), None);
        is(found(&acme), &second);
        is(found(&other), &foreign);
        let [running_first, running_second, running_foreign] = running;
        drop(running_second);
        is(found(&acme), &first);
        drop(running_first);
        assert!(found(&acme).is_none());
        is(found(&other), &foreign);
        drop(running_foreign);
        assert!(found(&other).is_none());
        assert_eq!(format!("{calls:?}"), "RunningCalls(1)");
    }
}
