# Catalogue.pm: all that the catalogues say of an installed pg_accord, as text, a line for each thing; so that two ways to
# install it can be compared.
#
#   use Catalogue;
#   is(catalogue($node, 'updated'), catalogue($node, 'fresh'));
package Catalogue;

use strict;
use warnings FATAL => 'all';

use Exporter qw(import);

our @EXPORT = qw(catalogue);

# OIDs and numbers of columns are not compared, the order of columns is. An ACL that says what the default says is none.
my $query = <<'SQL';
SET search_path = pg_catalog;
WITH extension AS (SELECT * FROM pg_extension WHERE extname = 'pg_accord'),
member AS (
    SELECT d.classid, d.objid FROM pg_depend d, extension e
    WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
),
relation AS (SELECT c.* FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid),
thing (kind, name, what) AS (
    SELECT 'extension', extname, concat_ws(' ', extversion, extnamespace::regnamespace, extrelocatable) FROM extension
    UNION ALL
    SELECT 'member', pg_describe_object(classid, objid, 0), '' FROM member
    UNION ALL
    SELECT 'dumped', t.relation::regclass::text, t.condition
    FROM extension e, unnest(e.extconfig, e.extcondition) AS t (relation, condition)
    UNION ALL
    SELECT 'relation', oid::regclass::text,
           concat_ws(' ', relkind, relpersistence, relreplident, relrowsecurity, relforcerowsecurity, relispartition,
                     reloptions, relowner::regrole, pg_get_expr(relpartbound, oid), pg_get_partkeydef(oid))
    FROM relation
    UNION ALL
    SELECT 'relation grants', oid::regclass::text,
           (SELECT string_agg(a::text, ' ' ORDER BY a::text)
            FROM unnest(coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))) a)
    FROM relation
    UNION ALL
    SELECT 'column', r.oid::regclass || '.' || a.attname,
           concat_ws(' ', row_number() OVER (PARTITION BY r.oid ORDER BY a.attnum), format_type(a.atttypid, a.atttypmod),
                     a.attnotnull, a.attidentity, a.attgenerated, a.attstorage, a.attcompression, a.attacl,
                     a.attcollation::regcollation, pg_get_expr(d.adbin, d.adrelid))
    FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE r.relkind <> 'i'
    UNION ALL
    SELECT 'view', oid::regclass::text, pg_get_viewdef(oid, true) FROM relation WHERE relkind = 'v'
    UNION ALL
    SELECT 'sequence', s.seqrelid::regclass::text,
           concat_ws(' ', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle)
    FROM pg_sequence s JOIN relation r ON r.oid = s.seqrelid
    UNION ALL
    SELECT 'constraint', c.conrelid::regclass || '.' || c.conname, concat_ws(' ', pg_get_constraintdef(c.oid), c.convalidated)
    FROM pg_constraint c JOIN relation r ON r.oid = c.conrelid
    UNION ALL
    SELECT 'index', i.indexrelid::regclass::text,
           concat_ws(' ', pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisreplident, i.indisclustered)
    FROM pg_index i JOIN relation r ON r.oid = i.indrelid
    UNION ALL
    SELECT 'trigger', t.tgrelid::regclass || '.' || t.tgname, concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled)
    FROM pg_trigger t JOIN relation r ON r.oid = t.tgrelid WHERE NOT t.tgisinternal
    UNION ALL
    SELECT 'rule', w.ev_class::regclass || '.' || w.rulename, pg_get_ruledef(w.oid)
    FROM pg_rewrite w JOIN relation r ON r.oid = w.ev_class WHERE w.rulename <> '_RETURN'
    UNION ALL
    SELECT 'function', p.oid::regprocedure::text,
           concat_ws(' ', CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid) END, p.proowner::regrole, p.procost,
                     p.prorows,
                     (SELECT string_agg(a::text, ' ' ORDER BY a::text)
                      FROM unnest(coalesce(p.proacl, acldefault('f', p.proowner))) a))
    FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
    UNION ALL
    SELECT 'type', t.oid::regtype::text, concat_ws(' ', t.typtype, t.typnotnull, t.typowner::regrole, t.typacl,
                                                   format_type(t.typbasetype, t.typtypmod), t.typdefault,
                                                   (SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', '
                                                                      ORDER BY a.attnum)
                                                    FROM pg_attribute a WHERE a.attrelid = t.typrelid AND t.typtype = 'c'
                                                      AND a.attnum > 0 AND NOT a.attisdropped))
    FROM pg_type t JOIN member m ON m.classid = 'pg_type'::regclass AND m.objid = t.oid
    UNION ALL
    SELECT 'comment', pg_describe_object(c.classoid, c.objoid, c.objsubid), c.description
    FROM pg_description c JOIN member m ON m.classid = c.classoid AND m.objid = c.objoid
    UNION ALL
    SELECT 'comment', concat_ws('.', r.oid::regclass::text, coalesce(t.tgname, n.conname)), c.description
    FROM pg_description c
    LEFT JOIN pg_trigger t ON c.classoid = 'pg_trigger'::regclass AND t.oid = c.objoid
    LEFT JOIN pg_constraint n ON c.classoid = 'pg_constraint'::regclass AND n.oid = c.objoid
    JOIN relation r ON r.oid IN (t.tgrelid, n.conrelid)
    UNION ALL
    SELECT 'initial privileges', pg_describe_object(p.classoid, p.objoid, p.objsubid), p.initprivs::text
    FROM pg_init_privs p JOIN member m ON m.classid = p.classoid AND m.objid = p.objoid
)
SELECT line FROM (SELECT kind || ': ' || name || ': ' || replace(coalesce(what, ''), E'\n', E'\\n') AS line FROM thing) l
ORDER BY line COLLATE "C";
SQL

sub catalogue
{
    my ($node, $database) = @_;
    return $node->safe_psql($database, $query);
}

1;
