-- template: accord.expand() gives what RFC 6570 says, and refuses what it does not allow.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_accord;
RESET client_min_messages;

-- The RFC's own variables (section 3.2) and examples. jsonb keeps the members of "keys" in the order dot, semi, comma,
-- so the examples that show its order show this one.
CREATE TEMPORARY TABLE rfc AS SELECT jsonb '{
    "count": ["one", "two", "three"], "dom": ["example", "com"], "dub": "me/too", "hello": "Hello World!",
    "half": "50%", "var": "value", "who": "fred", "base": "http://example.com/home/", "path": "/foo/bar",
    "list": ["red", "green", "blue"], "keys": {"semi": ";", "dot": ".", "comma": ","},
    "v": "6", "x": "1024", "y": "768", "empty": "", "empty_keys": {}, "undef": null,
    "year": ["1965", "2000", "2012"], "semi": ";"}' AS variables;

CREATE TEMPORARY TABLE example (section text, template text, expansion text);
INSERT INTO example VALUES
    ('2.4.1 prefix', '{var}', 'value'),
    ('2.4.1 prefix', '{var:20}', 'value'),
    ('2.4.1 prefix', '{var:3}', 'val'),
    ('2.4.1 prefix', '{semi}', '%3B'),
    ('2.4.1 prefix', '{semi:2}', '%3B'),
    ('2.4.2 explode', 'find{?year*}', 'find?year=1965&year=2000&year=2012'),
    ('2.4.2 explode', 'www{.dom*}', 'www.example.com'),
    ('3.2.1 variables', '{count}', 'one,two,three'),
    ('3.2.1 variables', '{count*}', 'one,two,three'),
    ('3.2.1 variables', '{/count}', '/one,two,three'),
    ('3.2.1 variables', '{/count*}', '/one/two/three'),
    ('3.2.1 variables', '{;count}', ';count=one,two,three'),
    ('3.2.1 variables', '{;count*}', ';count=one;count=two;count=three'),
    ('3.2.1 variables', '{?count}', '?count=one,two,three'),
    ('3.2.1 variables', '{?count*}', '?count=one&count=two&count=three'),
    ('3.2.1 variables', '{&count*}', '&count=one&count=two&count=three'),
    ('3.2.2 simple', '{var}', 'value'),
    ('3.2.2 simple', '{hello}', 'Hello%20World%21'),
    ('3.2.2 simple', '{half}', '50%25'),
    ('3.2.2 simple', 'O{empty}X', 'OX'),
    ('3.2.2 simple', 'O{undef}X', 'OX'),
    ('3.2.2 simple', '{x,y}', '1024,768'),
    ('3.2.2 simple', '{x,hello,y}', '1024,Hello%20World%21,768'),
    ('3.2.2 simple', '?{x,empty}', '?1024,'),
    ('3.2.2 simple', '?{x,undef}', '?1024'),
    ('3.2.2 simple', '?{undef,y}', '?768'),
    ('3.2.2 simple', '{var:3}', 'val'),
    ('3.2.2 simple', '{var:30}', 'value'),
    ('3.2.2 simple', '{list}', 'red,green,blue'),
    ('3.2.2 simple', '{list*}', 'red,green,blue'),
    ('3.2.2 simple', '{keys}', 'dot,.,semi,%3B,comma,%2C'),
    ('3.2.2 simple', '{keys*}', 'dot=.,semi=%3B,comma=%2C'),
    ('3.2.3 reserved', '{+var}', 'value'),
    ('3.2.3 reserved', '{+hello}', 'Hello%20World!'),
    ('3.2.3 reserved', '{+half}', '50%25'),
    ('3.2.3 reserved', '{base}index', 'http%3A%2F%2Fexample.com%2Fhome%2Findex'),
    ('3.2.3 reserved', '{+base}index', 'http://example.com/home/' || 'index'),
    ('3.2.3 reserved', 'O{+empty}X', 'OX'),
    ('3.2.3 reserved', 'O{+undef}X', 'OX'),
    ('3.2.3 reserved', '{+path}/here', '/foo/bar/here'),
    ('3.2.3 reserved', 'here?ref={+path}', 'here?ref=/foo/bar'),
    ('3.2.3 reserved', 'up{+path}{var}/here', 'up/foo/barvalue/here'),
    ('3.2.3 reserved', '{+x,hello,y}', '1024,Hello%20World!,768'),
    ('3.2.3 reserved', '{+path,x}/here', '/foo/bar,1024/here'),
    ('3.2.3 reserved', '{+path:6}/here', '/foo/b/here'),
    ('3.2.3 reserved', '{+list}', 'red,green,blue'),
    ('3.2.3 reserved', '{+list*}', 'red,green,blue'),
    ('3.2.3 reserved', '{+keys}', 'dot,.,semi,;,comma,,'),
    ('3.2.3 reserved', '{+keys*}', 'dot=.,semi=;,comma=,'),
    ('3.2.4 fragment', '{#var}', '#value'),
    ('3.2.4 fragment', '{#hello}', '#Hello%20World!'),
    ('3.2.4 fragment', '{#half}', '#50%25'),
    ('3.2.4 fragment', 'foo{#empty}', 'foo#'),
    ('3.2.4 fragment', 'foo{#undef}', 'foo'),
    ('3.2.4 fragment', '{#x,hello,y}', '#1024,Hello%20World!,768'),
    ('3.2.4 fragment', '{#path,x}/here', '#/foo/bar,1024/here'),
    ('3.2.4 fragment', '{#path:6}/here', '#/foo/b/here'),
    ('3.2.4 fragment', '{#list}', '#red,green,blue'),
    ('3.2.4 fragment', '{#list*}', '#red,green,blue'),
    ('3.2.4 fragment', '{#keys}', '#dot,.,semi,;,comma,,'),
    ('3.2.4 fragment', '{#keys*}', '#dot=.,semi=;,comma=,'),
    ('3.2.5 label', '{.who}', '.fred'),
    ('3.2.5 label', '{.who,who}', '.fred.fred'),
    ('3.2.5 label', '{.half,who}', '.50%25.fred'),
    ('3.2.5 label', 'www{.dom*}', 'www.example.com'),
    ('3.2.5 label', 'X{.var}', 'X.value'),
    ('3.2.5 label', 'X{.empty}', 'X.'),
    ('3.2.5 label', 'X{.undef}', 'X'),
    ('3.2.5 label', 'X{.var:3}', 'X.val'),
    ('3.2.5 label', 'X{.list}', 'X.red,green,blue'),
    ('3.2.5 label', 'X{.list*}', 'X.red.green.blue'),
    ('3.2.5 label', 'X{.keys}', 'X.dot,.,semi,%3B,comma,%2C'),
    ('3.2.5 label', 'X{.keys*}', 'X.dot=..semi=%3B.comma=%2C'),
    ('3.2.5 label', 'X{.empty_keys}', 'X'),
    ('3.2.5 label', 'X{.empty_keys*}', 'X'),
    ('3.2.6 path', '{/who}', '/fred'),
    ('3.2.6 path', '{/who,who}', '/fred/fred'),
    ('3.2.6 path', '{/half,who}', '/50%25/fred'),
    ('3.2.6 path', '{/who,dub}', '/fred/me%2Ftoo'),
    ('3.2.6 path', '{/var}', '/value'),
    ('3.2.6 path', '{/var,empty}', '/value/'),
    ('3.2.6 path', '{/var,undef}', '/value'),
    ('3.2.6 path', '{/var,x}/here', '/value/1024/here'),
    ('3.2.6 path', '{/var:1,var}', '/v/value'),
    ('3.2.6 path', '{/list}', '/red,green,blue'),
    ('3.2.6 path', '{/list*}', '/red/green/blue'),
    ('3.2.6 path', '{/list*,path:4}', '/red/green/blue/%2Ffoo'),
    ('3.2.6 path', '{/keys}', '/dot,.,semi,%3B,comma,%2C'),
    ('3.2.6 path', '{/keys*}', '/dot=./semi=%3B/comma=%2C'),
    ('3.2.7 parameter', '{;who}', ';who=fred'),
    ('3.2.7 parameter', '{;half}', ';half=50%25'),
    ('3.2.7 parameter', '{;empty}', ';empty'),
    ('3.2.7 parameter', '{;v,empty,who}', ';v=6;empty;who=fred'),
    ('3.2.7 parameter', '{;v,bar,who}', ';v=6;who=fred'),
    ('3.2.7 parameter', '{;x,y}', ';x=1024;y=768'),
    ('3.2.7 parameter', '{;x,y,empty}', ';x=1024;y=768;empty'),
    ('3.2.7 parameter', '{;x,y,undef}', ';x=1024;y=768'),
    ('3.2.7 parameter', '{;hello:5}', ';hello=Hello'),
    ('3.2.7 parameter', '{;list}', ';list=red,green,blue'),
    ('3.2.7 parameter', '{;list*}', ';list=red;list=green;list=blue'),
    ('3.2.7 parameter', '{;keys}', ';keys=dot,.,semi,%3B,comma,%2C'),
    ('3.2.7 parameter', '{;keys*}', ';dot=.;semi=%3B;comma=%2C'),
    ('3.2.8 query', '{?who}', '?who=fred'),
    ('3.2.8 query', '{?half}', '?half=50%25'),
    ('3.2.8 query', '{?x,y}', '?x=1024&y=768'),
    ('3.2.8 query', '{?x,y,empty}', '?x=1024&y=768&empty='),
    ('3.2.8 query', '{?x,y,undef}', '?x=1024&y=768'),
    ('3.2.8 query', '{?var:3}', '?var=val'),
    ('3.2.8 query', '{?list}', '?list=red,green,blue'),
    ('3.2.8 query', '{?list*}', '?list=red&list=green&list=blue'),
    ('3.2.8 query', '{?keys}', '?keys=dot,.,semi,%3B,comma,%2C'),
    ('3.2.8 query', '{?keys*}', '?dot=.&semi=%3B&comma=%2C'),
    ('3.2.9 continuation', '{&who}', '&who=fred'),
    ('3.2.9 continuation', '{&half}', '&half=50%25'),
    ('3.2.9 continuation', '?fixed=yes{&x}', '?fixed=yes&x=1024'),
    ('3.2.9 continuation', '{&x,y,empty}', '&x=1024&y=768&empty='),
    ('3.2.9 continuation', '{&x,y,undef}', '&x=1024&y=768'),
    ('3.2.9 continuation', '{&var:3}', '&var=val'),
    ('3.2.9 continuation', '{&list}', '&list=red,green,blue'),
    ('3.2.9 continuation', '{&list*}', '&list=red&list=green&list=blue'),
    ('3.2.9 continuation', '{&keys}', '&keys=dot,.,semi,%3B,comma,%2C'),
    ('3.2.9 continuation', '{&keys*}', '&dot=.&semi=%3B&comma=%2C');

SELECT section, count(*) AS examples, count(*) FILTER (WHERE accord.expand(template, variables) = expansion) AS correct
FROM example, rfc GROUP BY section ORDER BY section;
SELECT section, template, expansion AS expected, accord.expand(template, variables) AS got
FROM example, rfc WHERE accord.expand(template, variables) IS DISTINCT FROM expansion;

-- A name is the member of that name, else a path; a number is an array's index.
SELECT template, accord.expand(template, '{
    "key": "L 7", "a.b": "member", "a": {"b": "path", "c": ["zero", {"d": "deep"}]}, "%41": "triplet", "2": "two"}')
FROM unnest(ARRAY['/listings/{key}/rates/{a.c.0}', '{a.b}', '{a.c.1.d}', '{%41}{2}']) AS template;
SELECT accord.expand('[{a.c.2}{a.c.0.x}{key.x}{b}]', '{"key": 1, "a": {"c": ["zero"]}}') AS undefined,
    accord.expand('{1}', '["zero", "one"]') AS "array", accord.expand('{a}', '"scalar"') AS scalar;

-- Values that are not strings; undefined members are left out, a list of nothing else is undefined.
SELECT accord.expand('{?n,d,t,f,z}', '{"n": 12, "d": 1.50, "t": true, "f": false, "z": null}') AS scalars,
    accord.expand('{?l*,m,o*}', '{"l": [1, null, true], "m": [null], "o": {"a": null, "b": ""}}') AS members,
    accord.expand('{?o}', '{"o": [{"a": [1, 2]}, [3]]}') AS nested;

-- A prefix counts characters, what is encoded is UTF-8, and a member's name cannot add a parameter.
SELECT accord.expand('{a:2}/{a}/{+a}', jsonb_build_object('a', U&'\00E9\20AC\+01F600')) AS characters,
    accord.expand(U&'/caf\00E9 <{a}>', '{"a": "x"}') AS literal,
    accord.expand('{?o*}', '{"o": {"a&b=c": "d&e"}}') AS name;

-- Triplets stay as they are where reserved characters do, and a lone percent sign is encoded.
SELECT accord.expand('%41%4{a}{+a}', '{"a": "%42%4"}') AS triplets;
SELECT accord.expand('', '{}') = '' AS empty, accord.expand(NULL, '{}') IS NULL AS "null",
    length(accord.expand(repeat('{a}', 1000), jsonb_build_object('a', repeat('x', 1000)))) AS long,
    accord.expand('{%41.a_1,a:9999,_}', '{"_": 1}') AS names;

-- Malformed templates are refused, with the place.
SELECT accord.expand('/a/{b', '{}');
CREATE FUNCTION pg_temp.refusal(template text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN 'expands to ' || accord.expand(template, '{}');
EXCEPTION WHEN invalid_parameter_value THEN
    RETURN SQLERRM;
END
$$;
SELECT pg_temp.refusal(template) FROM unnest(ARRAY['{', 'a{b', 'a}b', '{}', '{a}}', '{a{b}}', '{?}', '{=a}', '{!a}', '{a b}', '{a,}',
    '{,a}', '{a,,b}', '{?=a}', '{a-b}', '{..a}', '{a.}', '{a..b}', '{%4}', '{a:}', '{a:0}', '{a:01}', '{a:10000}', '{a:3*}',
    '{a*:3}', '{a**}', '{a', '{a,', '{a:', '{+', '{$a}', U&'\00E9{\00E9}']) AS template;
