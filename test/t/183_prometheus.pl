# monitoring/: what postgres_exporter asks is asked of the database, as a member of pg_monitor, and gives what its metrics
# name; and, where the programs are at hand, the exporter is scraped by Prometheus, which evaluates every alert rule and every
# query of the dashboard.
use strict;
use warnings FATAL => 'all';

use Accord;
use File::Basename qw(dirname);
use HTTP::Tiny;
use JSON::PP;
use Test::More;

my $monitoring = dirname(__FILE__) . '/../../monitoring';
my $tools = $ENV{ACCORD_TOOLS} || '/usr/bin';
my $with_tools = -x "$tools/prometheus" && -x "$tools/promtool" && -x "$tools/prometheus-postgres-exporter";
my @children;
END { my $status = $?; kill 'TERM', @children; waitpid $_, 0 for @children; $? = $status; }

my $node = new_node('main', "listen_addresses = '127.0.0.1'\n");
my $stub = start_stub();

sub value { my ($sql) = @_; return $node->safe_psql('postgres', $sql); }
sub slurp { my ($name) = @_; return PostgreSQL::Test::Utils::slurp_file("$monitoring/$name"); }

# ---- something to see ----
send_everything($node);
channel($node, $stub, 'ota', route => { topic => 'rate', path => '/{key}' });
$stub->script([{ match => { path_regex => '/never' }, do => { status => 404 } }, { match => { path_regex => '/login' }, do => { status => 401 } }]);
value(q{CREATE ROLE prometheus LOGIN; GRANT pg_monitor TO prometheus;
    INSERT INTO accord.consumer (name) VALUES ('billing')});
$node->append_conf('pg_hba.conf', 'host all prometheus 127.0.0.1/32 trust');
$node->reload;
events($node, (map { { topic => 'rate', key => $_ } } 1 .. 7, 'never', 'login'));
wait_for_rows($node, q{SELECT delivered, dead, unauthorized > 0 FROM accord.pg_stat_accord}, '7|1|t');

# ---- what is asked ----
my %metric;
my @queries = slurp('postgres_exporter.yaml') =~ /^(\w+):\n  query: \|\n((?:    .*\n)+)  metrics:\n((?:    - .*\n)+)/gm;
while (my ($name, $query, $metrics) = splice @queries, 0, 3)
{
    my %usage = $metrics =~ /^    - (\w+): \{usage: (\w+), description: "[^"]+"\}$/gm;
    is(scalar(keys %usage), scalar(() = $metrics =~ /\n/g), "$name: each metric says what it is");
    my @columns = sort grep { !/_(?:bucket|sum|count)$/ } split /\n/, value(qq{CREATE TEMPORARY VIEW v AS $query;
        SELECT attname FROM pg_attribute WHERE attrelid = 'v'::regclass});
    is_deeply(\@columns, [sort keys %usage], "$name: each column is a metric");
    cmp_ok(value("SET ROLE prometheus; SELECT count(*) FROM ($query) q"), '>', 0, '... and a monitor may ask');
    is(value("SELECT count(*) FROM (SELECT to_jsonb(q) FROM ($query) q) s (j), jsonb_each(j) e WHERE e.value = 'null'"), '0',
        '... and always gets an answer');
    for my $column (grep { $usage{$_} ne 'LABEL' } keys %usage)
    {
        like($column, $usage{$column} eq 'COUNTER' ? qr/_total$/ : qr/(?<!_total)$/, "$column is named as such");
        $metric{ "${name}_$column" . ($usage{$column} eq 'HISTOGRAM' ? $_ : '') } = 1
          for $usage{$column} eq 'HISTOGRAM' ? qw(_bucket _sum _count) : '';
    }
}

# ---- rules and dashboard ask for what there is ----
my $dashboard = decode_json(slurp('grafana.json'));
my @expressions = map { $_->{expr} } map { @{ $_->{targets} } } @{ $dashboard->{panels} };
my @rules = slurp('alerts.yaml') =~ /^        expr: (.*)$/gm;
cmp_ok(scalar @expressions, '>', 20, 'the dashboard has queries');
cmp_ok(scalar @rules, '>', 10, 'there are alert rules');
my %asked = map { $_ => 1 } map { /\b(accord_\w+)/g } @expressions, @rules;
is_deeply([grep { !$metric{$_} } sort keys %asked], [], 'what they ask for is exported');
is_deeply([grep { !$asked{$_} } grep { !/_(?:requests|transactions|dead|held|settled|skipped)_total$|_behind$/ } sort keys %metric], [],
    'what is exported is looked at');
# the dashboard is put together as Grafana's schema has it, as far as that can be told without Grafana
my @panels = @{ $dashboard->{panels} };
my @variables = @{ $dashboard->{templating}{list} };
my %variable = map { $_->{name} => $_ } @variables;
cmp_ok($dashboard->{schemaVersion}, '==', 37, 'the dashboard is of the schema of Grafana 9');
is(scalar(keys %{ { map { $_->{id} => 1 } @panels } }), scalar(@panels), 'each panel has a number of its own');
for my $panel (@panels)
{
    my @targets = @{ $panel->{targets} };
    my @wrong = grep { $_->{datasource}{type} ne 'prometheus' || $_->{datasource}{uid} ne '${datasource}' } $panel, @targets;
    is(scalar(@wrong), 0, "$panel->{title}: asks the data source that was chosen");
    like($panel->{type}, qr/^(?:timeseries|stat)$/, '... is of a kind that Grafana brings');
    is(scalar(keys %{ { map { $_->{refId} => 1 } @targets } }), scalar(@targets), '... and tells its queries apart');
    is_deeply([grep { !$variable{$_} && !/^__/ } map { $_->{expr} =~ /\$\{?(\w+)/g } @targets], [], '... which use variables that there are');
}
my @choices = map { [$_->{query}{query} =~ /^label_values\((\w+), (\w+)\)$/] } grep { $_->{type} eq 'query' } @variables;
is_deeply([grep { !$metric{ $_->[0] } } @choices], [], 'what is chosen from is exported');
my %place;
for my $panel (@{ $dashboard->{panels} })
{
    my ($x, $y, $w, $h) = @{ $panel->{gridPos} }{qw(x y w h)};
    for my $at (map { my $row = $_; map { "$_,$row" } $x .. $x + $w - 1 } $y .. $y + $h - 1)
    {
        fail("panels $panel->{title} and $place{$at} overlap") if $place{$at};
        $place{$at} = $panel->{title};
    }
}

SKIP:
{
    skip 'not installed: prometheus, promtool and prometheus-postgres-exporter (ACCORD_TOOLS)', 1 unless $with_tools;
    my $http = HTTP::Tiny->new(timeout => 10);
    my ($exporter_port, $port) = map { PostgreSQL::Test::Cluster::get_free_port() } 1 .. 2;
    my $directory = PostgreSQL::Test::Utils::tempdir();

    open my $file, '>', "$directory/prometheus.yml" or die $!;
    print $file "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [$directory/alerts.yaml]\n",
      "scrape_configs: [{job_name: pg, static_configs: [{targets: ['127.0.0.1:$exporter_port']}]}]\n";
    close $file;
    # as they are, but for how long they wait
    (my $eager = slurp('alerts.yaml')) =~ s/^        for: .*\n//gm;
    open $file, '>', "$directory/alerts.yaml" or die $!;
    print $file $eager;
    close $file;
    is(system("$tools/promtool check rules $monitoring/alerts.yaml >$directory/promtool.log 2>&1"), 0, 'promtool takes the rules');

    run_tool({ DATA_SOURCE_NAME => 'postgresql://prometheus@127.0.0.1:' . $node->port . '/postgres?sslmode=disable' },
        "$directory/exporter.log", 'prometheus-postgres-exporter', "--web.listen-address=127.0.0.1:$exporter_port",
        "--extend.query-path=$monitoring/postgres_exporter.yaml", '--disable-default-metrics', '--disable-settings-metrics');
    run_tool({}, "$directory/prometheus.log", 'prometheus', "--web.listen-address=127.0.0.1:$port", "--config.file=$directory/prometheus.yml",
        "--storage.tsdb.path=$directory/data");
    my $api = sub {
        my ($what, $query) = @_;
        my $answer = $http->get("http://127.0.0.1:$port/api/v1/$what" . (defined $query ? '?' . $http->www_form_urlencode({ query => $query }) : ''));
        return $answer->{content} !~ /^\{/ ? {} : decode_json($answer->{content});
    };
    my $results = sub { my ($query) = @_; return $api->('query', $query)->{data}{result} || []; };

    poll_until(sub { @{ $results->('accord_stat_answer_seconds_count') } && @{ $results->('count_over_time(accord_stat_delivered_total[1m]) > 2') } },
        'Prometheus to have scraped');
    my ($exported) = $http->get("http://127.0.0.1:$exporter_port/metrics")->{content};
    is_deeply([grep { $exported !~ /^\Q$_\E\{/m } sort keys %metric], [], 'the exporter gives every metric');
    is($results->('accord_stat_delivered_total{channel="ota"}')->[0]{value}[1], '7', '... as it is');
    is($results->('accord_stat_answer_seconds_bucket{le="+Inf"} - ignoring(le) accord_stat_answer_seconds_count')->[0]{value}[1], '0',
        '... and the histogram is one');
    for my $expression (@expressions)
    {
        (my $query = $expression) =~ s/\$__rate_interval/1m/g;
        $query =~ s/\$(?:database|channel)/.*/g;
        my $answer = $api->('query', $query);
        ok($answer->{status} eq 'success' && @{ $answer->{data}{result} }, "answered: $expression")
          or diag(encode_json($answer));
    }
    for my $choice (@choices)
    {
        my ($metric, $label) = @$choice;
        is(scalar(grep { !defined $_->{metric}{$label} } @{ $results->($metric) }), 0, "$metric has $label to choose from");
    }
    my @loaded;
    poll_until(sub { @loaded = map { @{ $_->{rules} } } @{ $api->('rules')->{data}{groups} || [] };
            @loaded && !grep { $_->{health} eq 'unknown' } @loaded }, 'rules to be evaluated');
    is_deeply([map { "$_->{name}: $_->{lastError}" } grep { $_->{health} ne 'ok' } @loaded], [], 'every rule is evaluated');
    is(scalar @loaded, scalar @rules, '... all of them');
    poll_until(sub { my %firing = map { $_->{labels}{alertname} => $_ } @{ $api->('alerts')->{data}{alerts} || [] };
            $firing{AccordDeadLetters} && !$firing{AccordNotSeen} && !$firing{AccordNotDispatching} }, 'the alert about the dead letter');
    pass('a dead letter raises its alert');
}

$node->stop;
done_testing();

# A program that ends with the test.
sub run_tool
{
    my ($environment, $log, $program, @arguments) = @_;
    my $pid = fork;
    die "could not fork: $!" unless defined $pid;
    if ($pid == 0)
    {
        %ENV = (%ENV, %$environment);
        open STDOUT, '>', $log or die $!;
        open STDERR, '>&', \*STDOUT or die $!;
        exec "$tools/$program", @arguments or die "could not run $program: $!";
    }
    push @children, $pid;
    return;
}
