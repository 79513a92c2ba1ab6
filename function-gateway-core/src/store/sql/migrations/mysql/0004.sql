SET @fg_step = IF(
    EXISTS (
        SELECT 1 FROM information_schema.statistics
        WHERE table_schema = DATABASE() AND table_name = 'fg_rollups' AND index_name = 'fg_rollups_by_age'
    ),
    'DO 0',
    'CREATE INDEX fg_rollups_by_age ON fg_rollups (minute)'
);
PREPARE fg_step FROM @fg_step;
EXECUTE fg_step;
DEALLOCATE PREPARE fg_step;
