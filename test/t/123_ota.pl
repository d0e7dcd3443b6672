# examples/ota.sql, as it stands, against Stoplight's Prism, which holds our requests against an OpenAPI description: rows
# change, and what arrives is what our description of such a site (test/openapi/ota.yaml) says, some hundred nights in a few calls; what breaks it is
# told, so that this test can fail. Needs @stoplight/prism-cli in ACCORD_NODE_MODULES.
use strict;
use warnings FATAL => 'all';

use Accord;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use Servers;
use Test::More;

plan skip_all => 'not installed: @stoplight/prism-cli of npm (ACCORD_NODE_MODULES)'
  unless defined Servers::modules() && -e Servers::modules() . '/.bin/prism';
my $top = abs_path(dirname(__FILE__) . '/../..');
my $node = new_node('main', "log_statement = none\n");
my $prism = Servers->node('prism', sub { my ($port) = @_;
    return ('mock', '--errors', '--host', '127.0.0.1', '--port', $port, "$top/test/openapi/ota.yaml") });

sub sql { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }

my ($status) = $node->psql('postgres', undef, on_error_stop => 0, extra_params => [ '-v', 'base_url=' . $prism->url, '-v',
    'api_key=ota-key-123', '-f', "$top/examples/ota.sql" ]);
is($status, 0, 'the page runs');
sql(q{INSERT INTO accord.account (channel, name, vars)
      SELECT c, 'seaview', '{"id": "716305c4-561a-4561-a187-7f5b8aeb5920", "rate_plans": {"double": "rp-1", "single": "rp-2"}}'
      FROM unnest('{ota,ota-rates}'::text[]) c});
is(sql(q{SELECT ok, verdict FROM accord.probe('ota', 'seaview')}), 't|works', 'the site is there, and takes the key');

# ---- rows change

sql(q{INSERT INTO hotel.night (property, room_type, night, rooms, price)
      SELECT 'seaview', t, current_date + n, 5, 120 + n FROM unnest('{double,single}'::text[]) t, generate_series(0, 199) n});
wait_for_delivery($node);
is(sql(q{SELECT channel, count(*), string_agg(DISTINCT outcome, ' ') FROM accord.attempt_log GROUP BY 1 ORDER BY 1}),
    "ota|400|delivered\nota-rates|400|delivered", '400 nights are taken');
cmp_ok(sql(q{SELECT count(DISTINCT (channel, recorded_at, request_id, duration_ms)) FROM accord.attempt_log}), '<=', 12, '... in a few calls');
sql(q{UPDATE hotel.night SET rooms = rooms - 1 WHERE room_type = 'double' AND night = current_date + 1;
      UPDATE hotel.night SET closed = true, min_stay = 3 WHERE room_type = 'single' AND night = current_date + 2;
      INSERT INTO hotel.night VALUES ('seaview', 'double', current_date - 1, 1, 99), ('elsewhere', 'double', current_date, 1, 99)});
wait_for_delivery($node);
is(sql(q{SELECT channel, count(*) FROM accord.attempt_log WHERE outcome = 'delivered' GROUP BY 1 ORDER BY 1}),
    "ota|403\nota-rates|403", 'what changed goes, too');
is(sql(q{SELECT count(*) FROM accord.attempt_log WHERE account = 'elsewhere'}), '0', '... of hotels that have joined');
like(sql(q{SELECT body FROM accord.preview((SELECT event_id FROM accord.event_log WHERE op = 'update' LIMIT 1), 'ota')}),
    qr/^\{"values": \[\{"date": "[-0-9]+", "property_id": "716305c4-561a-4561-a187-7f5b8aeb5920", "availability": 4, "room_type_id": "double"\}\]\}$/,
    'what is sent, looked at');

# ---- and what is wrong is found

sql(q{UPDATE accord.account SET vars = '{"id": "not a uuid", "rate_plans": {}}'});
sql(q{UPDATE hotel.night SET rooms = 3 WHERE room_type = 'double' AND night = current_date + 5});
wait_for_rows($node, q{SELECT channel, response LIKE '%property_id%uuid%' FROM accord.attempt_log WHERE outcome = 'rejected'
    AND status = 422 ORDER BY 1}, 'ota|t', 'ota-rates|t');
pass('a request that is not what the description says is refused');
unlike($prism->output, qr/ota-key-123/, 'the key is not in what Prism prints');

$node->stop;
done_testing();
