//! What follows upon the end of an invocation.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;

use crate::host::Host;
use crate::submit::queued_record;
use crate::{
    Acceptance, AsyncPolicy, Deadline, Destination, FunctionId, FunctionKey, FunctionName, Generation, InvocationId,
    InvocationRecord, InvocationState, InvokeRequest, Origin, Progress, Sequence, StoredRequest, Submission, Work,
};

/// How long a store that fails is left alone.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(500);

impl Host {
    /// What follows upon the end of an invocation.
    pub(super) async fn followers(
        &self,
        submission: &Submission,
        policy: &AsyncPolicy,
        record: &InvocationRecord,
        progress: &Progress,
    ) -> Vec<Acceptance> {
        let succeeded = record.state == InvocationState::Succeeded;
        let mut followers = Vec::new();
        match policy.destination(succeeded) {
            // Whoever is told of a chain that is too long would only make it longer.
            _ if submission.lineage.depth > self.config.queue.max_chain => {}
            Some(Destination::Function(name)) => {
                let (payload, content_type) = match succeeded {
                    true => result_of(progress),
                    false => (ending_document(record, progress).into(), Some(ENDING_TYPE)),
                };
                let mut request = InvokeRequest::new(Bytes::new());
                if let Some(content_type) = content_type {
                    request.headers.insert(http::header::CONTENT_TYPE, content_type);
                }
                if let Ok(request) = StoredRequest::of(&request) {
                    let mut follower = self.follower(submission, name, request, payload).await;
                    follower.0.lineage.depth += 1;
                    let is_kept = progress.answer.as_ref().is_some_and(|answer| answer.body.is_some());
                    if succeeded && !is_kept {
                        let reason = "the result that it was to get was streamed or too large, and is not kept";
                        follower.0.refused = Some(reason.to_owned());
                    }
                    followers.push(follower);
                }
            }
            Some(Destination::Callback(target)) => {
                let request = StoredRequest::of(&InvokeRequest::new(Bytes::new()));
                if let Ok(request) = request {
                    let mut callback = self.child(submission, request, ending_document(record, progress).into());
                    callback.work = Work::Callback { url: target.url.clone(), secret: target.secret.clone() };
                    // Tried as the function that it tells of; what may be repeated and what is worth it is the sender's to say.
                    let mut tried = policy.clone();
                    (tried.retry_classes, tried.retry_statuses) = (None, None);
                    (tried.on_success, tried.on_failure) = (None, None);
                    callback.policy = Some(tried);
                    followers.push((callback, None));
                }
            }
            None => {}
        }
        if let Some(Sequence { next, go_on }) = &submission.sequence
            && (succeeded || *go_on)
            && let Some((name, rest)) = next.split_first()
        {
            let (request, payload) = (submission.request.clone(), submission.payload.clone());
            let mut follower = self.follower(submission, name, request, payload).await;
            follower.0.policy.clone_from(&submission.policy);
            follower.0.sequence = (!rest.is_empty()).then(|| Sequence::new(rest.to_vec(), *go_on));
            followers.push(follower);
        }
        let accept = |(submission, record): (Submission, Option<InvocationRecord>)| {
            Acceptance::new(Arc::new(submission), record.map(Arc::new))
        };
        followers.into_iter().map(accept).collect()
    }

    /// An invocation of another function as a consequence of one. Where there is no such function it is accepted all the
    /// same, and ends as a dead letter that says so: what it was to get is not lost.
    async fn follower(
        &self,
        parent: &Submission,
        name: &FunctionName,
        request: StoredRequest,
        payload: Bytes,
    ) -> (Submission, Option<InvocationRecord>) {
        let mut child = self.child(parent, request, payload);
        child.key = FunctionKey::new(parent.key.tenant.clone(), name.clone());
        // A store that fails does not mean that there is no such function.
        let deadline = Deadline::after(self.config.queue.lease_margin);
        let named = loop {
            match self.named(&child.key).await {
                Err(_) if deadline.remaining() > AGAIN => tokio::time::sleep(AGAIN).await,
                named => break named,
            }
        };
        let (function, generation, revision) =
            named.unwrap_or_else(|_| (FunctionId::generate(), Generation::FIRST, None));
        (child.function, child.generation) = (function, generation);
        child.lineage.accepted_by = revision.as_ref().map(|revision| revision.generation);
        let record = Some(queued_record(&child, revision.as_deref()));
        (child, record)
    }

    fn child(&self, parent: &Submission, request: StoredRequest, payload: Bytes) -> Submission {
        let mut child = parent.clone();
        child.id = InvocationId::generate();
        child.created_at = self.clock.now();
        child.not_before = None;
        (child.request, child.payload) = (request, payload);
        (child.pinned, child.policy, child.idempotency, child.sequence) = (false, None, None, None);
        child.refused = None;
        child.work = Work::Invoke;
        child.origin = if parent.lineage.event.is_some() { Origin::Event } else { Origin::Async };
        (child.lineage.parent, child.lineage.redrive_of) = (Some(parent.id), None);
        child
    }
}

/// The result of a success, as the payload of what follows.
fn result_of(progress: &Progress) -> (Bytes, Option<http::HeaderValue>) {
    let Some(answer) = &progress.answer else { return (Bytes::new(), None) };
    let content_type = answer.headers.iter().find(|(name, _)| name == http::header::CONTENT_TYPE.as_str());
    let content_type = content_type.and_then(|(_, value)| http::HeaderValue::try_from(value).ok());
    (answer.body.clone().unwrap_or_default(), content_type)
}

/// The JSON document about the end of an invocation that a destination gets.
fn ending_document(record: &InvocationRecord, progress: &Progress) -> Vec<u8> {
    let result = progress.answer.as_ref().and_then(|answer| answer.body.as_ref());
    let json = result.and_then(|body| serde_json::from_slice::<serde_json::Value>(body).ok());
    let text = result.filter(|_| json.is_none()).and_then(|body| std::str::from_utf8(body).ok());
    let document = serde_json::json!({
        "type": if record.state == InvocationState::Succeeded { "invocation.succeeded" } else { "invocation.failed" },
        "timestamp": record.finished_at,
        "data": {
            "invocation": record.id,
            "tenant": record.key.tenant,
            "function": record.key.name,
            "generation": record.generation,
            "state": record.state,
            "status": record.status,
            "failure": record.failure,
            "attempts": record.attempts,
            "lineage": record.lineage,
            "result": json.or_else(|| text.map(Into::into)),
        }
    });
    document.to_string().into_bytes()
}

/// The media type of [`ending_document`].
const ENDING_TYPE: HeaderValue = HeaderValue::from_static("application/json");
