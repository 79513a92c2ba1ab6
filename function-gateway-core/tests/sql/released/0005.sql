-- The fifth version writes records of executions without what has columns.
UPDATE fg_schema SET version = 5, min_reader = 5;
INSERT INTO fg_invocations (id, tenant, name, function_id, state, class, caller, created_at, finished_at, format, document, payload, result, logs) VALUES (
    '01a21478-2b1e-7a51-8c1d-4f0d6b1c2e3f',
    'acme',
    'greet',
    '01a21478-2b1a-704d-a5e4-6be5eaf51c8a',
    'succeeded',
    NULL,
    'eve',
    1795639749406374,
    1795639749408374,
    2,
    '{"generation":1,"driver":"local","owner":"ann","labels":{"team":"red"},"status":200,"attempts":1,"trace":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","started":500,"timings":{"driver":1400,"total":2000},"request_bytes":5,"response_bytes":7,"result":{"content_type":"text/plain","len":7,"truncated":false}}',
    NULL,
    x'68656c6c6f2121',
    NULL
);
INSERT INTO fg_invocation_labels (id, label_key, label_value, tenant, created_at) VALUES (
    '01a21478-2b1e-7a51-8c1d-4f0d6b1c2e3f',
    x'7465616d',
    x'726564',
    'acme',
    1795639749406374
);
