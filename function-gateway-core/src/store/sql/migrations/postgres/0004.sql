CREATE INDEX fg_rollups_by_age ON fg_rollups (minute);
