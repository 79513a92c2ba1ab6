-- What the third version wrote beside that.
UPDATE fg_schema SET version = 3;
INSERT INTO fg_invocations (id, tenant, name, function_id, state, class, caller, created_at, finished_at, format, document, payload, result, logs) VALUES (
    '01a21478-2b1a-704d-a5e4-6be5eaf51d01',
    'acme',
    'greet',
    '01a21478-2b1a-704d-a5e4-6be5eaf51c8a',
    'running',
    NULL,
    'bob',
    1795639749402084,
    NULL,
    1,
    '{"record":{"id":"01a21478-2b1a-704d-a5e4-6be5eaf51d01","key":{"tenant":"acme","name":"greet"},"function":"01a21478-2b1a-704d-a5e4-6be5eaf51c8a","generation":1,"driver":"local","owner":"ann","state":"queued","attempts":0,"caller":"bob","origin":"async","created_at":"2026-11-25T20:49:09.402084Z","timings":{},"response_bytes":0,"lineage":{"accepted_by":1}}}',
    NULL,
    NULL,
    NULL
);
INSERT INTO fg_submissions (id, tenant, name, function_id, pinned, state, due_at, epoch, attempts, repeatable, cancel_requested, created_at, ended_at, dead_at, expires_at, idem_key, format, document, progress, payload, result) VALUES (
    '01a21478-2b1a-704d-a5e4-6be5eaf51d01',
    'acme',
    'greet',
    '01a21478-2b1a-704d-a5e4-6be5eaf51c8a',
    1,
    'running',
    1795639754402084,
    1,
    1,
    1,
    0,
    1795639749402084,
    NULL,
    NULL,
    NULL,
    x'69742773',
    1,
    '{"id":"01a21478-2b1a-704d-a5e4-6be5eaf51d01","key":{"tenant":"acme","name":"greet"},"function":"01a21478-2b1a-704d-a5e4-6be5eaf51c8a","generation":1,"pinned":true,"work":"invoke","principal":{"tenant":"acme","id":"bob"},"origin":"async","created_at":"2026-11-25T20:49:09.402084Z","request":{"method":"POST","headers":[["content-type","text/plain"]]},"idempotency":{"key":"it''s","fingerprint":"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"},"lineage":{"accepted_by":1}}',
    '{}',
    x'68656c6c6f',
    NULL
);
INSERT INTO fg_submissions (id, tenant, name, function_id, pinned, state, due_at, epoch, attempts, repeatable, cancel_requested, created_at, ended_at, dead_at, expires_at, idem_key, format, document, progress, payload, result) VALUES (
    '01a21478-2b1a-704d-a5e4-6be5eaf51d02',
    'acme',
    'greet',
    '01a21478-2b1a-704d-a5e4-6be5eaf51c8a',
    NULL,
    'dead',
    NULL,
    1,
    1,
    0,
    0,
    1795639749402084,
    1795639754402084,
    1795639754402084,
    NULL,
    NULL,
    1,
    '{"id":"01a21478-2b1a-704d-a5e4-6be5eaf51d02","key":{"tenant":"acme","name":"greet"},"function":"01a21478-2b1a-704d-a5e4-6be5eaf51c8a","generation":1,"work":{"callback":{"url":"https://example.org"}},"principal":{"tenant":"acme","id":"bob"},"origin":"async","created_at":"2026-11-25T20:49:09.402084Z","request":{"method":"POST","headers":[["content-type","text/plain"]]},"lineage":{"accepted_by":1}}',
    '{"attempts":[{"number":1,"started_at":"2026-11-25T20:49:09.403084Z","finished_at":"2026-11-25T20:49:09.404084Z","status":500,"failure":{"class":"function","code":"function_failed","message":"the function failed","delivery":"executed"}}],"failure":{"class":"function","code":"function_failed","message":"the function failed","delivery":"executed"},"answer":{"status":500,"headers":[["content-type","text/plain"]]}}',
    x'68656c6c6f',
    x'736f727279'
);
INSERT INTO fg_queue_depth (tenant, name, open, dead, pinned, next_due_at) VALUES (
    'acme',
    '',
    1,
    1,
    1,
    1795639754402084
);
INSERT INTO fg_queue_depth (tenant, name, open, dead, pinned, next_due_at) VALUES (
    'acme',
    'greet',
    1,
    1,
    1,
    NULL
);
INSERT INTO fg_commits (writer, batch, at) VALUES (
    '01a215cf-4ffa-76c8-983b-f1e49ae70c41',
    5,
    1795639754402084
);
INSERT INTO fg_documents (tenant, kind, name, version, format, content) VALUES (
    'acme',
    x'737562736372697074696f6e',
    x'732d31',
    1,
    1,
    x'7b226974223a2022686f6c6473227d'
);
