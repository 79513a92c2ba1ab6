-- What the first version wrote.
CREATE TABLE fg_schema (
    one        BIGINT NOT NULL PRIMARY KEY,
    version    BIGINT NOT NULL,
    min_reader BIGINT NOT NULL,
    gateway    VARCHAR(24) NOT NULL
);
INSERT INTO fg_schema (one, version, min_reader, gateway) VALUES (
    1,
    1,
    1,
    'g0123456789abcde'
);
INSERT INTO fg_functions (tenant, name, id, owner, driver, phase, generation, version, created_at, updated_at, reconcile_at, lease_epoch, lease_from, lease_until, format, spec, status) VALUES (
    'acme',
    'greet',
    '01a21478-2b1a-704d-a5e4-6be5eaf51c8a',
    'ann',
    'local',
    'ready',
    1,
    3,
    1795639749402084,
    1795639749402084,
    1795639749402084,
    0,
    NULL,
    NULL,
    1,
    '{"driver":"local","run":{"process":{"command":"cat"}},"labels":{"team":"blue"},"protocol":"exec","env":{"GREETING":"it''s"},"later":"a field of a later version"}',
    '{"phase":"ready","route":[{"generation":1,"weight":1}],"deployments":[{"generation":1,"driver":"local","target":"v1","state":"pending","since":"2026-11-25T20:49:09.402084Z","failures":0,"due_at":"2026-11-25T20:49:09.402084Z"}],"conditions":[],"reconcile_at":"2026-11-25T20:49:09.402084Z"}'
);
INSERT INTO fg_function_labels (tenant, label_key, label_value, name, seq) VALUES (
    'acme',
    x'7465616d',
    x'626c7565',
    'greet',
    (SELECT seq FROM fg_functions WHERE name = 'greet')
);
INSERT INTO fg_revisions (function_id, generation, tenant, format, document) VALUES (
    '01a21478-2b1a-704d-a5e4-6be5eaf51c8a',
    1,
    'acme',
    1,
    '{"key":{"tenant":"acme","name":"greet"},"function":"01a21478-2b1a-704d-a5e4-6be5eaf51c8a","generation":1,"spec":{"driver":"local","run":{"process":{"command":"cat"}},"labels":{"team":"blue"},"protocol":"exec","env":{"GREETING":"it''s"},"later":"a field of a later version"},"created_at":"2026-11-25T20:49:09.402084Z","created_by":"ann","owner":"ann","reason":"created"}'
);
INSERT INTO fg_invocations (id, tenant, name, function_id, state, class, caller, created_at, finished_at, format, document, payload, result, logs) VALUES (
    '01a21478-2b1d-723d-9050-8c637f2aa32c',
    'acme',
    'greet',
    '01a21478-2b1a-704d-a5e4-6be5eaf51c8a',
    'failed',
    'function',
    'bob',
    1795639749405374,
    1795639749406374,
    1,
    '{"record":{"id":"01a21478-2b1d-723d-9050-8c637f2aa32c","key":{"tenant":"acme","name":"greet"},"function":"01a21478-2b1a-704d-a5e4-6be5eaf51c8a","generation":1,"driver":"local","owner":"ann","labels":{"team":"blue"},"state":"failed","failure":{"class":"function","code":"function_failed","message":"no name","delivery":"executed"},"attempts":0,"caller":"bob","origin":"sync","created_at":"2026-11-25T20:49:09.405374Z","finished_at":"2026-11-25T20:49:09.406374Z","timings":{"total":1234},"response_bytes":0},"payload":{"len":5,"truncated":false}}',
    x'68656c6c6f',
    NULL,
    NULL
);
INSERT INTO fg_invocation_labels (id, label_key, label_value, tenant, created_at) VALUES (
    '01a21478-2b1d-723d-9050-8c637f2aa32c',
    x'7465616d',
    x'626c7565',
    'acme',
    1795639749405374
);
INSERT INTO fg_rollups (id, tenant, name, minute, format, document) VALUES (
    '01a21478-2b1d-723d-9050-8c64a3e5eee8',
    'acme',
    'greet',
    29927329,
    1,
    '{"by_state":{"failed":1},"by_class":{"function":1},"phases":{"total":[[115,1]]}}'
);
