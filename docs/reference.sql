-- docs/reference.sql: prints docs/reference.md, from the catalogue of a database with pg_accord: `make reference` runs it.
-- psql -XAtq -f docs/reference.sql
\pset format unaligned
\pset tuples_only on
SET search_path = pg_catalog;

CREATE TEMPORARY VIEW member AS
    SELECT d.classid, d.objid FROM pg_depend d
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
      AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_accord');
-- Text in a cell of a table.
CREATE FUNCTION pg_temp.cell(value text) RETURNS text LANGUAGE sql AS $$
    SELECT replace(replace(replace(coalesce(value, ''), '|', '\|'), '<', '&lt;'), E'\n', ' ') $$;
CREATE FUNCTION pg_temp.code(value text) RETURNS text LANGUAGE sql AS $$
    SELECT CASE WHEN value <> '' THEN '`' || pg_temp.cell(value) || '`' ELSE '' END $$;

\echo '# Reference'
\echo
\echo 'Every table, view, type, function and setting, as the catalogue describes them (`\\d+ accord.*` and `\\df+ accord.*` say the same).'
\echo 'This page is made by `make reference`; the [README](../README.md#reference) says more about what belongs together.'

WITH relation AS (
    SELECT c.oid, c.relname::text AS name, c.relkind IN ('r', 'p') AS is_table
    FROM member m JOIN pg_class c ON c.oid = m.objid
    WHERE m.classid = 'pg_class'::regclass AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
), described AS (
    SELECT r.is_table, r.name, format(E'\n### accord.%s\n\n%s.\n\n| column | type | default | |\n|---|---|---|---|\n%s', r.name,
               upper(left(obj_description(r.oid, 'pg_class'), 1)) || substr(obj_description(r.oid, 'pg_class'), 2),
               string_agg(format('| %s | %s | %s | %s |', pg_temp.code(a.attname), pg_temp.cell(format_type(a.atttypid, a.atttypmod)
                                     || CASE WHEN r.is_table AND NOT a.attnotnull THEN ', null' ELSE '' END),
                                 pg_temp.code(CASE WHEN a.attidentity <> '' THEN 'identity' ELSE pg_get_expr(d.adbin, d.adrelid) END),
                                 pg_temp.cell(col_description(r.oid, a.attnum))), E'\n' ORDER BY a.attnum)) AS text
    FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
    GROUP BY r.oid, r.is_table, r.name
)
SELECT format(E'\n## %s\n%s', CASE WHEN is_table THEN 'Tables' ELSE 'Views' END, string_agg(text, E'\n' ORDER BY name COLLATE "C"))
FROM described GROUP BY is_table ORDER BY is_table DESC;

SELECT E'\n## Types\n\n| type | fields | |\n|---|---|---|\n' || string_agg(format('| %s | %s | %s |', pg_temp.code('accord.' || t.typname), (
               SELECT string_agg(format('`%s %s`', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
               FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped),
           pg_temp.cell(obj_description(t.oid, 'pg_type'))), E'\n' ORDER BY t.typname COLLATE "C")
FROM member m JOIN pg_type t ON t.oid = m.objid LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE m.classid = 'pg_type'::regclass AND t.typelem = 0 AND coalesce(c.relkind, 'c') = 'c';

SELECT E'\n## Functions\n' || string_agg(format(E'\n**%s** `(%s)` returns `%s`  \n%s.', pg_temp.cell('accord.' || p.proname),
           replace(pg_get_function_arguments(p.oid), E'\n', ' '), pg_get_function_result(p.oid),
           upper(left(d.text, 1)) || substr(d.text, 2)),
           E'\n' ORDER BY p.proname COLLATE "C", pg_get_function_identity_arguments(p.oid) COLLATE "C")
FROM member m JOIN pg_proc p ON p.oid = m.objid CROSS JOIN LATERAL (SELECT obj_description(p.oid, 'pg_proc')) d (text)
WHERE m.classid = 'pg_proc'::regclass AND d.text !~ '^(internal|trigger): ';

SELECT E'\n## Settings\n\n| setting | default | context | |\n|---|---|---|---|\n'
    || string_agg(format('| %s | %s | %s | %s |', pg_temp.code(s.name), pg_temp.cell(concat_ws(' ', nullif(s.boot_val, ''), s.unit)), s.context,
                         pg_temp.cell(concat_ws(' ', s.short_desc, s.extra_desc))), E'\n' ORDER BY s.name COLLATE "C")
FROM pg_settings s WHERE s.name LIKE 'accord.%';
