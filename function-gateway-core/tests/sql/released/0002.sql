-- What the second version wrote beside that.
UPDATE fg_schema SET version = 2;
INSERT INTO fg_api_keys (id, tenant, hash, document, created_at, expires_at, revoked_at, format) VALUES (
    '01a21478-2b1a-704d-a5e4-6be5eaf51c01',
    'acme',
    x'ab01010101010101010101010101010101010101010101010101010101010101',
    '{"principal":"bob","scopes":["invoke:img-*","read"],"description":"it''s","created_by":"ann"}',
    1795639749402084,
    NULL,
    NULL,
    1
);
INSERT INTO fg_api_keys (id, tenant, hash, document, created_at, expires_at, revoked_at, format) VALUES (
    '01a21478-2b1a-704d-a5e4-6be5eaf51c02',
    'acme',
    x'0101010101010101010101010101010101010101010101010101010101010101',
    '{"principal":"ann","scopes":[],"description":"","created_by":"ann"}',
    1795639749402085,
    1795639809402085,
    1795639749402086,
    1
);
INSERT INTO fg_audit (id, tenant, name, principal, action, document, created_at, format) VALUES (
    '01a21478-2b1a-704d-a5e4-6be5eaf51c03',
    'acme',
    'greet',
    'ann',
    'create',
    '{"id":"01a21478-2b1a-704d-a5e4-6be5eaf51c03","at":"2026-11-25T20:49:09.402084Z","tenant":"acme","principal":"ann","action":"create","function":"greet","generation":1,"allowed":true}',
    1795639749402084,
    1
);
INSERT INTO fg_audit (id, tenant, name, principal, action, document, created_at, format) VALUES (
    '01a21478-2b1a-704d-a5e4-6be5eaf51c04',
    'acme',
    NULL,
    'bob',
    'revoke_key',
    '{"id":"01a21478-2b1a-704d-a5e4-6be5eaf51c04","at":"2026-11-25T20:49:09.402085Z","tenant":"acme","principal":"bob","action":"revoke_key","key":"01a21478-2b1a-704d-a5e4-6be5eaf51c02","allowed":false}',
    1795639749402085,
    1
);
