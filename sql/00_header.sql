-- pg_accord: the install script, made from sql/NN_area.sql by `make`. Edit the parts.
\echo Use "CREATE EXTENSION pg_accord" to load this file. \quit


-- The schema must be as good as new. Whoever made it before us, or may create in it, could leave operators and functions
-- there that the statements below would take for PostgreSQL's own, and that superusers would then run.
DO $$
DECLARE
    space record;
BEGIN
    SELECT n.oid, n.nspowner, n.nspacl INTO space FROM pg_catalog.pg_namespace n
    WHERE n.nspname OPERATOR(pg_catalog.=) 'accord';
    IF EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.pronamespace OPERATOR(pg_catalog.=) space.oid)
       OR EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace OPERATOR(pg_catalog.=) space.oid)
       OR EXISTS (SELECT FROM pg_catalog.pg_type t WHERE t.typnamespace OPERATOR(pg_catalog.=) space.oid)
       OR EXISTS (SELECT FROM pg_catalog.pg_operator o WHERE o.oprnamespace OPERATOR(pg_catalog.=) space.oid)
       OR EXISTS (SELECT FROM pg_catalog.pg_collation c WHERE c.collnamespace OPERATOR(pg_catalog.=) space.oid)
       OR EXISTS (SELECT FROM pg_catalog.pg_conversion c WHERE c.connamespace OPERATOR(pg_catalog.=) space.oid) THEN
        RAISE EXCEPTION USING ERRCODE = 'duplicate_schema',
            MESSAGE = 'schema "accord" exists and is not empty',
            HINT = 'Look who made what is in it; then DROP SCHEMA accord CASCADE.';
    END IF;
    IF NOT (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) space.nspowner)
       OR EXISTS (SELECT FROM pg_catalog.aclexplode(space.nspacl) a
                  WHERE a.privilege_type OPERATOR(pg_catalog.=) 'CREATE'
                    AND a.grantee OPERATOR(pg_catalog.<>) space.nspowner) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = 'schema "accord" exists, and others than superusers may create in it',
            HINT = 'DROP SCHEMA accord, and let CREATE EXTENSION make it.';
    END IF;
END
$$;
